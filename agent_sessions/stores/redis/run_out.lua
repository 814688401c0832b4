-- Sessions that have ended without having been ended, the longest ago first.
--
-- KEYS  the index; on a cluster the hash of orders
-- ARGV  1: now, limit
-- Replies {now, 1 if more may be gone, id, ended at, order, id, ended at, order, ...}; order on a cluster only

local MOST = 200

local now, limit = struct.unpack('>dd', ARGV[1])
now = clock(now)
local swept = KEYS[2] and 0 or sweep(K, now, MOST)

local function read(shelf)
  return call('ZRANGEBYSCORE', K, text(shelf * SHELF), text(score(shelf, now)), 'WITHSCORES', 'LIMIT', 0, limit)
end
local shelves = {{found = read(ENDS), at = 1}, {found = read(RAN_OUT), at = 1}}
local reply = {string.format('%.0f', now), swept == MOST and 1 or 0}
for _ = 1, limit do
  local first = next_of(shelves, false)
  if not first then break end
  local id = string.sub(first.id, 2)
  reply[#reply + 1] = id
  reply[#reply + 1] = text(first.time)
  reply[#reply + 1] = KEYS[2] and call('HGET', KEYS[2], id) or false
end
return reply
