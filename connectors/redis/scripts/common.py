"""What runs inside Redis. Each script names all its keys, lies in one slot, and changes nothing when run again.

Numbers in Lua are doubles: versions and totals are compared as digits, so that they are exact at any length, and
times in microseconds are below 2^53. Written for Redis 7.0 and Valkey.
"""

from typing import Final

from tidegate.connectors.redis.client import Script

_WHOLE: Final = """
local state = redis.call('HMGET', KEYS[1], 'born', 'rebuilding')
if not state[1] then return 'lost' end
if state[2] then return 'rebuilding' end
"""

# KEYS: state of the bucket, periods and charts of a customer. Gives both hashes.
READ: Final = Script(
    f"{_WHOLE} return {{ redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3]) }}", reads=True
)

# KEYS: state and index of the bucket. ARGV: a number, how many names at most.
# Gives when the bucket was born, its last write, now, and who was written since (false: too many to name).
CHANGES: Final = Script(
    f"""{_WHOLE}
local top = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
local born, names, time = tonumber(state[1]), {{}}, redis.call('TIME')
top = math.max(tonumber(top or 0), born)
if top > tonumber(ARGV[1]) then
  local since = '(' .. ARGV[1]
  if redis.call('ZCOUNT', KEYS[2], since, '+inf') > tonumber(ARGV[2]) then
    names = false
  else
    names = redis.call('ZRANGEBYSCORE', KEYS[2], since, '+inf')
  end
end
return {{ born, top, time[1] * 1000000 + time[2], names }}
""",
    reads=True,
)

# KEYS: notes of a kind, their times, those of the customer. ARGV: id, time, body, the note in MessagePack (customer,
#   time, body), how many to keep of the kind, and of the customer, when the customer's end (ms).
# Gives whether it is news; it is so again when the same comes again, as the answer may have been lost.
NOTE: Final = Script("""
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local _, at, body = unpack(cmsgpack.unpack(old))
  if tonumber(ARGV[2]) == at and ARGV[3] == body then return 1 end
  if tonumber(ARGV[2]) < at or ARGV[3] == body then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - ARGV[6])
redis.call('PEXPIREAT', KEYS[3], ARGV[7])
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1 - ARGV[5])) do
  redis.call('HDEL', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
end
return 1
""")

# KEYS: notes of a kind, the times of all or of a customer's. ARGV: how many. Gives ids and notes, the newest first,
#   without those that are off the list.
NOTES: Final = Script(
    """
local wanted, from, ids, notes = tonumber(ARGV[1]), 0, {}, {}
while #ids < wanted do
  local some = redis.call('ZREVRANGE', KEYS[2], from, from + wanted - 1)
  if #some == 0 then break end
  from = from + #some
  for _, id in ipairs(some) do
    local note = redis.call('HGET', KEYS[1], id)
    local _, _, body = unpack(note and cmsgpack.unpack(note) or {})
    if body and body ~= '' and #ids < wanted then
      ids[#ids + 1], notes[#notes + 1] = id, note
    end
  end
end
return { ids, notes }
""",
    reads=True,
)

# KEYS: state of a bucket. ARGV: schema, the rebuild that is to fill it, or nothing. Gives schema and rebuild.
MARK: Final = Script("""
local time = redis.call('TIME')
redis.call('HSETNX', KEYS[1], 'schema', ARGV[1])
redis.call('HSETNX', KEYS[1], 'born', string.format('%.0f', time[1] * 1000000 + time[2]))
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'rebuilding', ARGV[2]) end
return redis.call('HMGET', KEYS[1], 'schema', 'rebuilding')
""")

# KEYS: state of a bucket. ARGV: a rebuild that is done, and all before it.
UNMARK: Final = Script("""
local rebuilding = redis.call('HGET', KEYS[1], 'rebuilding')
if rebuilding and tonumber(string.match(rebuilding, '^%d+')) <= tonumber(string.match(ARGV[1], '^%d+')) then
  redis.call('HDEL', KEYS[1], 'rebuilding')
end
""")

# KEYS: control stream and its ids. ARGV: id, record.
# Gives its position; a known id is not added again, and the record that is there is given too.
APPEND: Final = Script("""
local position = redis.call('HGET', KEYS[2], ARGV[1])
if not position then
  position = redis.call('XADD', KEYS[1], '*', 'record', ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[1], position)
  return { position, false }
end
local known = redis.call('XRANGE', KEYS[1], position, position)[1]
return { position, known and known[2][2] }
""")

# KEYS: the rebuild, the shards that are done with it, control stream and its ids. ARGV: a number (µs) before which
#   nothing is known to be lost, what makes the id unlike any other, the record before and behind the id.
# Gives the id of the rebuild: the one under way, if it was begun after that number, else a new one, asked for.
BEGIN: Final = Script("""
local under_way, began = unpack(redis.call('HMGET', KEYS[1], 'id', 'began'))
if under_way and tonumber(ARGV[1]) < tonumber(began) then return under_way end
local time = redis.call('TIME')
began = string.format('%.0f', math.max(time[1] * 1000000 + time[2], tonumber(began or 0) + 1))
local id = began .. '-' .. ARGV[2]
redis.call('HSET', KEYS[1], 'id', id, 'began', began)
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[4], id, redis.call('XADD', KEYS[3], '*', 'record', ARGV[3] .. id .. ARGV[4]))
return id
""")

# KEYS: the rebuild, the shards that are done with it. ARGV: id, shard, shards in all.
# Gives whether it is over, also if it was over before.
DONE: Final = Script("""
local under_way, last = unpack(redis.call('HMGET', KEYS[1], 'id', 'last'))
if under_way ~= ARGV[1] then return last == ARGV[1] and 1 or 0 end
redis.call('SADD', KEYS[2], ARGV[2])
if redis.call('SCARD', KEYS[2]) < tonumber(ARGV[3]) then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'last', ARGV[1])
return 1
""")

# KEYS: catalogs, the newest one's number. ARGV: the number expected (-1: any), the version in JSON.
# Gives whether it was taken, and the number that is the newest now. The newest, come again, is taken as it is.
APPLY: Final = Script("""
local newest = tonumber(redis.call('GET', KEYS[2]) or 0)
if redis.call('HGET', KEYS[1], newest) == ARGV[2] then return { 1, newest } end
if ARGV[1] ~= '-1' and tonumber(ARGV[1]) ~= newest then return { 0, newest } end
redis.call('SET', KEYS[2], newest + 1)
redis.call('HSET', KEYS[1], newest + 1, ARGV[2])
return { 1, newest + 1 }
""")

# KEYS: catalogs, the newest one's number. ARGV: number and version in JSON of one that was there. Gives the newest.
PUT_BACK: Final = Script("""
local newest = tonumber(redis.call('GET', KEYS[2]) or 0)
if newest >= tonumber(ARGV[1]) then return newest end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return tonumber(ARGV[1])
""")
