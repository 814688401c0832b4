-- How many sessions of an index are not past their time.
--
-- KEYS  the index by activity, the index by end
-- ARGV  1: now, whether this takes places away that are past their time, else it tells them
-- Replies {the number, id, ...}: those that have been past it for a minute, and those that were entered and never made

local MOST, MINUTE = 200, 60000

local now, takes = struct.unpack('>dB', ARGV[1])
now = clock(now)
local n = call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now), '+inf')
if takes == 0 then
  local from, to = string.format('%.0f', -now), string.format('%.0f', now - MINUTE)
  return {n, unpack(call('ZRANGEBYSCORE', KEYS[2], from, to, 'LIMIT', 0, MOST))}
end
local dead = call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, MOST)
if #dead > 0 then
  call('ZREM', KEYS[1], unpack(dead))
  call('ZREM', KEYS[2], unpack(dead))
end
return {n}
