-- A page of places in an index, the latest first, from a cursor on.
--
-- KEYS  the index; on a cluster the hash of orders
-- ARGV  1: now, limit, cursor's time (-1: none) and id, order, status
-- Replies {now, unsettled, id, time, status, end, order, id, time, status, end, order, ...}; end and order on a cluster
-- only (no end: it was only entered). If there is more than one script may settle, the reply is {now, 1}: ask again. On
-- a cluster it is the caller who has to settle, by the sessions themselves.

local MOST = 100

local now, limit, time, id, order, asked = struct.unpack('>dddI2c0c1B', ARGV[1])
now = clock(now)
local by = order == 's' and BY_START or BY_ACTIVITY
local page = {string.format('%.0f', now), 0}

if asked > 0 then
  local unsettled
  if KEYS[2] then unsettled = #due(K, ENDS, now, 1) + #due(K, IDLES, now, 1) > 0
  else unsettled = settle(K, now, MOST) end
  if unsettled then return {page[1], 1} end
end

-- The members of a shelf that come after the cursor, each followed by its score.
local function read(shelf)
  local cursor = score(shelf, time >= 0 and time or INFINITY)
  local from = call('ZCOUNT', K, '(' .. text(cursor), '+inf')
  if time >= 0 then
    -- Places of the cursor's own millisecond are in reverse byte order: find the first that comes after it.
    local low, high, last = from, from + call('ZCOUNT', K, text(cursor), text(cursor)), order .. id
    while low < high do
      local middle = math.floor((low + high) / 2)
      if comes_before(call('ZREVRANGE', K, middle, middle)[1], last) then high = middle else low = middle + 1 end
    end
    from = low
  end
  local found = call('ZREVRANGE', K, from, from + limit - 1, 'WITHSCORES')
  for i = 2, #found, 2 do
    if tonumber(found[i]) < shelf * SHELF then
      for j = #found, i - 1, -1 do found[j] = nil end
      break
    end
  end
  return found
end

local shelves = {}
for i, status in ipairs({'active', 'idle', 'ended'}) do
  if asked == 0 or asked == i then shelves[#shelves + 1] = {status = status, found = read(by[status]), at = 1} end
end
for _ = 1, limit do
  local first = next_of(shelves, true)
  if not first then break end
  local found, gone = string.sub(first.id, 2), false
  if KEYS[2] then
    gone = call('ZSCORE', K, 'g' .. found)
    gone = gone and tonumber(gone) >= GOES * SHELF and text(time_in(gone))
  end
  page[#page + 1] = found
  page[#page + 1] = text(first.time)
  page[#page + 1] = first.status
  page[#page + 1] = gone
  page[#page + 1] = KEYS[2] and call('HGET', KEYS[2], found) or false
end
return page
