-- How many sessions of an index are not past their time.
--
-- KEYS  the index by activity, the index by end; on a cluster the hash of orders
-- ARGV  1: now
-- Replies {the number}; it has taken some of those away that are past their time. On a cluster, where these are to be
-- looked at first, {the number, id, order, id, order, ...}: those that have been past it for a minute, and those that
-- were entered for one and never made

local MOST, MINUTE = 200, 60000

local now = clock((struct.unpack('>d', ARGV[1])))
local n = call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now), '+inf')
if KEYS[3] then
  local from, to = string.format('%.0f', -now), string.format('%.0f', now - MINUTE)
  local reply = {n}
  for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[2], from, to, 'LIMIT', 0, MOST)) do
    reply[#reply + 1] = id
    reply[#reply + 1] = call('HGET', KEYS[3], id)
  end
  return reply
end
local dead = call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, MOST)
if #dead > 0 then
  call('ZREM', KEYS[1], unpack(dead))
  call('ZREM', KEYS[2], unpack(dead))
end
return {n}
