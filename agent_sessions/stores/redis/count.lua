-- How many sessions of an index are not past their time; takes at most 200 that are out of it.
--
-- KEYS  the index by activity, the index by end
-- ARGV  1: now
-- Replies the number

local PURGED = 200

local now = clock((struct.unpack('>d', ARGV[1])))
local n = call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now), '+inf')
local dead = call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, PURGED)
if #dead > 0 then
  call('ZREM', KEYS[1], unpack(dead))
  call('ZREM', KEYS[2], unpack(dead))
end
return n
