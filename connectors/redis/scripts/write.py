"""What writes totals and counters inside Redis: only what is newer, digit by digit; and drops what is past its time.

The rules of connectors/redis/scripts/common.py hold here too.
"""

from typing import Final

from tidegate.connectors.redis.client import Script
from tidegate.connectors.redis.scripts.hold import HOLDS

# Rows between two looks for what is past its time; so many at most are kept longer.
SWEEP: Final = 16

_NUMBERS: Final = """
-- How digits a stand to digits b, without needless zeros in front or of the same length: -1, 0 or 1.
local function digits(a, b)
  if #a ~= #b then return #a < #b and -1 or 1 end
  for i = 1, #a, 15 do
    local x, y = tonumber(string.sub(a, i, i + 14)), tonumber(string.sub(b, i, i + 14))
    if x ~= y then return x < y and -1 or 1 end
  end
  return 0
end

local function later(a, b) return digits(a, b) > 0 end

-- Whether decimal a is less than decimal b; both without exponent and without needless zeros in front.
local function less(a, b)
  if #a < 16 and #b < 16 then return tonumber(a) < tonumber(b) end
  local minus_a, whole_a, part_a = string.match(a, '^(%-?)0*(%d*)%.?(%d*)$')
  local minus_b, whole_b, part_b = string.match(b, '^(%-?)0*(%d*)%.?(%d*)$')
  local places = math.max(#part_a, #part_b)
  a = whole_a .. part_a .. string.rep('0', places - #part_a)
  b = whole_b .. part_b .. string.rep('0', places - #part_b)
  if minus_a ~= minus_b then
    return minus_a == '-' and (string.find(a, '[1-9]') or string.find(b, '[1-9]')) ~= nil
  end
  if minus_a == '-' then return digits(a, b) > 0 end
  return digits(a, b) < 0
end
"""

_SWEEPS: Final = f"""
local function start_of(field)
  local start, unit = string.match(field, '^%a(%-?%d+)(u?) ')
  return tonumber(start) * (unit == 'u' and 1 or 60000000)
end

local function length_of(row)
  local _, head = string.find(row, '^%d+%a%S+ ')
  return cmsgpack.unpack(string.sub(row, head + 1))[1]
end

local function drop(key, gone)
  for i = 1, #gone, 5000 do
    redis.call('HDEL', key, unpack(gone, i, math.min(i + 4999, #gone)))
  end
end

-- The newer of two starts, of which one in the future counts for nothing, as one wrong clock may have made it.
local function newer(newest, start, keep)
  if start > keep.now then return newest end
  return math.max(newest or start, start)
end

-- Drops hours and days that began too long before the newest of their kind.
local function sweep_charts(key, keep)
  local newest, fields, gone = {{}}, redis.call('HKEYS', key), {{}}
  for _, field in ipairs(fields) do
    local kind = string.sub(field, 1, 1)
    newest[kind] = newer(newest[kind], start_of(field), keep)
  end
  for _, field in ipairs(fields) do
    local kind = string.sub(field, 1, 1)
    if newest[kind] and start_of(field) + keep[kind] < newest[kind] then gone[#gone + 1] = field end
  end
  drop(key, gone)
end

-- Drops periods that ended too long before the newest began.
local function sweep_periods(key, keep)
  local newest, rows, gone = nil, redis.call('HGETALL', key), {{}}
  for i = 1, #rows, 2 do newest = newer(newest, start_of(rows[i]), keep) end
  for i = 1, #rows, 2 do
    if newest and start_of(rows[i]) + length_of(rows[i + 1]) + keep.p < newest then gone[#gone + 1] = rows[i] end
  end
  drop(key, gone)
end

local function grown_past_a_sweep(key, created)
  local size = redis.call('HLEN', key)
  return math.floor(size / {SWEEP}) > math.floor((size - created) / {SWEEP}), size == created
end
"""

# KEYS: state, index and waiting holds of the bucket, then periods and charts of each customer, and where holds of it
#   end, its four keys of holds.
# ARGV: the number of the last write of this writer here, the highest it knows of anywhere, the times to keep rows of
#   each kind (µs), when charts end (ms), the number of the last hold it knows of here (or nothing: no hold can end);
#   then of each customer its name, when its periods end (ms), how many rows of periods, of charts, and holds that end;
#   the fields of periods, their rows, the fields of charts, their rows, the identities of the holds.
# Gives the number of the bucket's last write; or a word where the bucket has lost something; or, with nothing written,
#   the holds that the writer does not know of yet, with their numbers.
WRITE: Final = Script(f"""{_NUMBERS}{_SWEEPS}{HOLDS}
local born = redis.call('HGET', KEYS[1], 'born')
if not born then return 'lost' end
-- Marked by somebody else, after what this writer wrote was lost.
if ARGV[1] ~= '0' and tonumber(born) > tonumber(ARGV[1]) then return 'lost' end
local top = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
top = math.max(tonumber(top or 0), tonumber(born))
if top < tonumber(ARGV[1]) then return 'behind' end
if ARGV[7] ~= '' then
  local last = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
  if last and tonumber(last) > tonumber(ARGV[7]) then
    return redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[7], '+inf', 'WITHSCORES', 'LIMIT', 0, 10000)
  end
end
local time = redis.call('TIME')
local times = {{
  h = tonumber(ARGV[3]), d = tonumber(ARGV[4]), p = tonumber(ARGV[5]), now = time[1] * 1000000 + time[2]
}}
local charts_end = ARGV[6]

-- Fields and rows are ARGV from `at` on, `count` of each.
local function put(key, at, count)
  local old, new = redis.call('HMGET', key, unpack(ARGV, at, at + count - 1)), {{}}
  for i = 1, count do
    local row, take = ARGV[at + count + i - 1], true
    if old[i] then
      local version, kind, total = string.match(row, '^(%d+)(%a)(%S+) ')
      local old_version, _, old_total = string.match(old[i], '^(%d+)(%a)(%S+) ')
      take = later(version, old_version) and (kind == 'u' or not less(total, old_total))
      -- An end moves without a new version.
      if not take and version == old_version and total == old_total then
        take = length_of(row) ~= length_of(old[i])
      end
    end
    if take then
      new[#new + 1] = ARGV[at + i - 1]
      new[#new + 1] = row
    end
  end
  if #new == 0 then return false, 0 end
  return true, redis.call('HSET', key, unpack(new))
end

local function put_periods(key, at, count, ends)
  local changed, created = put(key, at, count)
  local first = false
  if created > 0 then
    local grown
    grown, first = grown_past_a_sweep(key, created)
    if grown then sweep_periods(key, times) end
  end
  if first then
    redis.call('PEXPIREAT', key, ends)
  elseif changed then
    redis.call('PEXPIREAT', key, ends, 'GT')
  end
  return changed
end

local function put_charts(key, at, count)
  local changed, created = put(key, at, count)
  if created > 0 then
    if grown_past_a_sweep(key, created) then sweep_charts(key, times) end
    redis.call('PEXPIREAT', key, charts_end)
  end
  return changed
end

local now = math.max(times.now, top + 1, tonumber(ARGV[2]) + 1)
local number, told = string.format('%.0f', now), {{}}
local at, key = 8, 4
while KEYS[key] do
  local name, ends, periods, charts, ended = unpack(ARGV, at, at + 4)
  at = at + 5
  local changed = periods == '0' and charts == '0' and ended == '0'
  if periods ~= '0' then changed = put_periods(KEYS[key], at, periods, ends) end
  at = at + 2 * periods
  if charts ~= '0' then changed = put_charts(KEYS[key + 1], at, charts) or changed end
  at, key = at + 2 * charts, key + 2
  for _ = 1, tonumber(ended) do
    changed = settle(key, ARGV[at]) or changed
    redis.call('ZREM', KEYS[3], ARGV[at] .. name)
    at = at + 1
  end
  if ended ~= '0' then key = key + 4 end
  if changed then
    told[#told + 1] = number
    told[#told + 1] = name
    top = now
  end
end
for i = 1, #told, 4000 do
  redis.call('ZADD', KEYS[2], unpack(told, i, math.min(i + 3999, #told)))
end
return top
""")

# KEYS: counters. ARGV: names and values, by turns. None falls.
COUNT: Final = Script(f"""{_NUMBERS}
for i = 1, #ARGV, 2 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  if not old or later(ARGV[i + 1], old) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
""")
