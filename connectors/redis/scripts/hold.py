"""The scripts of holds: what may be held is decided inside Redis, where totals and other holds are.

Quantities are whole numbers of 10⁻²⁴, of any length, as digits; in Lua, limbs of fifteen digits each, the last of them
signed. Of each customer there are four keys, in this order:

    m   hash: what is held of each meter, by those that are held or committed, also past their time until swept
    h   hash: each hold by the identity of its event: MessagePack of state, until, asked, final
    u   sorted set: those in the sum, by their end (µs)
    e   sorted set: all that are remembered, by their end

Asked and final are lists of meters and digits, by turns, in the order of meters. A bucket has the sorted set of all
holds whose event has not come (identity, then customer), by the number of their last change.
"""

from typing import Final

from tidegate.connectors.redis.client import Script
from tidegate.operators.gate.holds import REMEMBERED

HELD, COMMITTED, EXPIRED, RELEASED, SETTLED = range(5)
PRUNED_AT_ONCE: Final = 16
# A hold lives for days at most; what is older waits for an event that will find it gone.
WAITING_MAX_US: Final = 15 * 86_400_000_000

_WHOLE_NUMBERS: Final = """
local function big(digits)
  local sign, limbs = 1, {}
  if string.sub(digits, 1, 1) == '-' then
    sign, digits = -1, string.sub(digits, 2)
  end
  for i = #digits, 1, -15 do limbs[#limbs + 1] = sign * tonumber(string.sub(digits, math.max(1, i - 14), i)) end
  return limbs
end

-- a + sign * b, in place of a. Only the last limb may be negative.
local function add(a, b, sign)
  local carry = 0
  for i = 1, math.max(#a, #b) do
    local sum = (a[i] or 0) + sign * (b[i] or 0) + carry
    if i < math.max(#a, #b) or sum >= 1e15 then
      carry = math.floor(sum / 1e15)
      a[i] = sum - carry * 1e15
    else
      carry = 0
      a[i] = sum
    end
  end
  if carry ~= 0 then a[#a + 1] = carry end
  while #a > 1 and a[#a] == 0 do a[#a] = nil end
  -- A last limb of -1 and limbs below it are one number, and negative.
  return a
end

local function negative(a) return a[#a] < 0 end

local function written(a)
  local parts = { string.format('%.0f', a[#a]) }
  for i = #a - 1, 1, -1 do parts[#parts + 1] = string.format('%015.0f', a[i]) end
  return table.concat(parts)
end

-- A total as it stands in a row, in units of 10^-24.
local function total_of(row)
  local whole, part = string.match(row, '^%d+%a(%-?%d+)%.?(%d*)')
  return big(whole .. string.sub(part .. '000000000000000000000000', 1, 24))
end
"""

# What a customer's holds need: `base` is the place of the first of its four keys in KEYS.
HOLDS: Final = f"""{_WHOLE_NUMBERS}
local function hold_of(base, id)
  local packed = redis.call('HGET', KEYS[base + 1], id)
  if packed then return cmsgpack.unpack(packed) end
end

local function keep(base, id, state, until_, asked, final)
  redis.call('HSET', KEYS[base + 1], id, cmsgpack.pack({{ state, until_, asked, final }}))
end

-- A hold, if it is still to be remembered.
local function known(base, id, now)
  local hold = hold_of(base, id)
  if hold and hold[2] + {REMEMBERED} >= tonumber(now) then return hold end
end

-- Adds to what is held of each meter; what comes to nothing goes.
local function sum(base, quantities, sign)
  for i = 1, #quantities, 2 do
    local held = add(big(redis.call('HGET', KEYS[base], quantities[i]) or '0'), big(quantities[i + 1]), sign)
    if #held == 1 and held[1] == 0 then
      redis.call('HDEL', KEYS[base], quantities[i])
    else
      redis.call('HSET', KEYS[base], quantities[i], written(held))
    end
  end
end

-- Takes a hold out of the sum, if it is in it.
local function uncount(base, id, final)
  if redis.call('ZREM', KEYS[base + 2], id) == 1 then
    sum(base, final, -1)
    return true
  end
  return false
end

local function settle(base, id)
  local hold = hold_of(base, id)
  if not hold or hold[1] == {SETTLED} then return false end
  keep(base, id, {SETTLED}, hold[2], hold[3], hold[4])
  return uncount(base, id, hold[4])
end
"""

_STATE: Final = """
local state = redis.call('HMGET', KEYS[1], 'born', 'rebuilding')
if not state[1] then return 'lost' end
if state[2] then return 'rebuilding' end
"""

# KEYS: state of the bucket, periods, then the customer's holds from 3 on.
# ARGV: now, how many fields of periods, the fields.
_ACCOUNT: Final = """
local function account(now, first, count)
  local used = {}
  if count > 0 then used = redis.call('HMGET', KEYS[2], unpack(ARGV, first, first + count - 1)) end
  local held, meters, seen = {}, {}, {}
  local sums = redis.call('HGETALL', KEYS[3])
  for i = 1, #sums, 2 do
    meters[#meters + 1] = sums[i]
    held[sums[i]] = big(sums[i + 1])
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now)) do
    local final = hold_of(3, id)[4]
    for i = 1, #final, 2 do held[final[i]] = add(held[final[i]] or { 0 }, big(final[i + 1]), -1) end
  end
  table.sort(meters)
  local flat = {}
  for _, meter in ipairs(meters) do
    flat[#flat + 1] = meter
    flat[#flat + 1] = written(held[meter])
  end
  for i, row in ipairs(used) do seen[i] = row or '-' end
  local revision = redis.sha1hex(cmsgpack.pack({ seen, flat }))
  local next = redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  return { used, flat, next or false, string.sub(revision, 1, 15) }, held
end
"""

ACCOUNT: Final = Script(
    f"{HOLDS}{_ACCOUNT}{_STATE} return (account(ARGV[1], 3, tonumber(ARGV[2])))", reads=True
)

# KEYS from 7 on: index of the bucket, its waiting holds. What changes is numbered, so that followers are told.
_CHANGES: Final = f"""
local function number()
  local time = redis.call('TIME')
  local top = redis.call('ZREVRANGE', KEYS[7], 0, 0, 'WITHSCORES')[2]
  return math.max(time[1] * 1000000 + time[2], tonumber(top or 0) + 1, tonumber(state[1]) + 1)
end

local function tell(id, customer)
  local now = number()
  local text = string.format('%.0f', now)
  redis.call('ZADD', KEYS[7], text, customer)
  redis.call('ZADD', KEYS[8], text, id .. customer)
  redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', now - {WAITING_MAX_US})
end

-- All keys of a customer go when the last hold is forgotten.
local function outlive(now)
  local last = redis.call('ZREVRANGE', KEYS[6], 0, 0, 'WITHSCORES')[2]
  local rest = string.format('%.0f', math.max(last - now, 0) / 1000 + {2 * REMEMBERED // 1000})
  for i = 3, 6 do redis.call('PEXPIRE', KEYS[i], rest) end
end

-- Takes the customer's holds that are past their time out of the sum. A first commit stands all the same.
local function sweep(now)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now)) do
    local hold = hold_of(3, id)
    if hold[1] ~= {COMMITTED} then keep(3, id, {EXPIRED}, hold[2], hold[3], hold[4]) end
    uncount(3, id, hold[4])
  end
end

-- Forgets some of the holds that ended long ago.
local function prune(now, customer)
  local before = string.format('%.0f', now - {REMEMBERED})
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', '(' .. before, 'LIMIT', 0, {PRUNED_AT_ONCE})) do
    local hold = hold_of(3, id)
    if hold then uncount(3, id, hold[4]) end
    redis.call('HDEL', KEYS[4], id)
    redis.call('ZREM', KEYS[6], id)
    redis.call('ZREM', KEYS[8], id .. customer)
  end
end
"""

# ARGV: now, identity, customer, until, revision seen (or nothing), what is asked in MessagePack, ceilings in
#   MessagePack (meter, place among the fields or 0, digits), how many fields of periods, the fields.
# Gives the outcome, and the account after it.
RESERVE: Final = Script(f"""{HOLDS}{_ACCOUNT}{_STATE}{_CHANGES}
local now, id, customer, until_ = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local fields, asked = tonumber(ARGV[8]), cmsgpack.unpack(ARGV[6])
local found, held = account(now, 9, fields)
local hold = known(3, id, now)
if hold and hold[1] == {SETTLED} then return {{ 'settled', found }} end
if hold and hold[1] <= {COMMITTED} and tonumber(hold[2]) > tonumber(now) then
  return {{ cmsgpack.pack(hold[3]) == cmsgpack.pack(asked) and 'repeated' or 'conflict', found }}
end
local more = {{}}
for i = 1, #asked, 2 do more[asked[i]] = asked[i + 1] end
for _, ceiling in ipairs(cmsgpack.unpack(ARGV[7])) do
  local meter, place, most = unpack(ceiling)
  local room = big(most)
  if found[1][place] then add(room, total_of(found[1][place]), -1) end
  if held[meter] then add(room, held[meter], -1) end
  if more[meter] then add(room, big(more[meter]), -1) end
  if negative(room) then return {{ 'full', found }} end
end
if ARGV[5] ~= '' and ARGV[5] ~= found[4] then return {{ 'moved', found }} end
sweep(now)
keep(3, id, {HELD}, until_, asked, asked)
redis.call('ZADD', KEYS[5], until_, id)
redis.call('ZADD', KEYS[6], until_, id)
sum(3, asked, 1)
tell(id, customer)
prune(now, customer)
outlive(now)
return {{ 'held', (account(now, 9, fields)) }}
""")

# ARGV: now, identity, customer, until, what is final in MessagePack (or nothing: what was asked).
# Gives the state, what was asked, and whether the hold had expired.
COMMIT: Final = Script(f"""{HOLDS}{_STATE}{_CHANGES}
local now, id, customer = ARGV[1], ARGV[2], ARGV[3]
local hold = known(3, id, now)
if not hold then return {{ 'unknown', {{}}, 0 }} end
local was, ends, asked, old = unpack(hold)
if was == {SETTLED} then return {{ 'settled', asked, 0 }} end
if was == {RELEASED} then return {{ 'released', asked, 0 }} end
local final = {{ unpack(asked) }}
if ARGV[5] ~= '' then
  local given = cmsgpack.unpack(ARGV[5])
  if #given == 2 and given[1] == '' and #asked == 2 then given[1] = asked[1] end
  for i = 1, #given, 2 do
    local known = false
    for j = 1, #final, 2 do
      if final[j] == given[i] then
        known, final[j + 1] = true, given[i + 1]
      end
    end
    if not known then return {{ 'conflict', asked, 0 }} end
  end
end
if was == {COMMITTED} then
  return {{ cmsgpack.pack(final) == cmsgpack.pack(old) and 'committed' or 'conflict', asked, 0 }}
end
local expired = (was == {EXPIRED} or tonumber(ends) <= tonumber(now)) and 1 or 0
sweep(now)
uncount(3, id, old)
local until_ = tonumber(ARGV[4]) > tonumber(ends) and ARGV[4] or ends
keep(3, id, {COMMITTED}, until_, asked, final)
redis.call('ZADD', KEYS[5], until_, id)
redis.call('ZADD', KEYS[6], until_, id)
sum(3, final, 1)
tell(id, customer)
outlive(now)
return {{ 'committed', asked, expired }}
""")

# ARGV: now, identity, customer. Gives the state and what was asked.
RELEASE: Final = Script(f"""{HOLDS}{_STATE}{_CHANGES}
local hold = known(3, ARGV[2], ARGV[1])
if not hold then return {{ 'unknown', {{}} }} end
local was, ends, asked, final = unpack(hold)
if was == {SETTLED} then return {{ 'settled', asked }} end
if was == {COMMITTED} then return {{ 'committed', asked }} end
if uncount(3, ARGV[2], final) then tell(ARGV[2], ARGV[3]) end
keep(3, ARGV[2], {RELEASED}, ends, asked, final)
return {{ 'released', asked }}
""")
