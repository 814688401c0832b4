-- How many sessions of an index have a status, or are not gone.
--
-- KEYS  the index; on a cluster the hash of orders
-- ARGV  1: now, status (0: any)
-- Replies {the number}; it has taken some of those away that are gone. On a cluster, where these are to be looked at
-- first, {the number, id, order, id, order, ...}: those whose status has changed with the time, those that have been
-- gone for a minute, and those that were entered for one and never made

local MOST, MINUTE = 200, 60000

local now, status = struct.unpack('>dB', ARGV[1])
now = clock(now)
local n
if status == 1 then n = to_come(K, IDLES, now)
elseif status == 2 then n = to_come(K, ENDS, now) - to_come(K, IDLES, now)
elseif status == 3 then n = to_come(K, GOES, now) - to_come(K, ENDS, now)
else n = to_come(K, GOES, now) end
n = math.max(n, 0)

if not KEYS[2] then
  sweep(K, now, MOST)
  return {n}
end
local reply = {n}
for _, shelf in ipairs({{ENTERED, now}, {GOES, now - MINUTE}, {ENDS, now}, {IDLES, now}}) do
  for _, id in ipairs(due(K, shelf[1], shelf[2], MOST)) do
    reply[#reply + 1] = id
    reply[#reply + 1] = call('HGET', KEYS[2], id)
  end
end
return reply
