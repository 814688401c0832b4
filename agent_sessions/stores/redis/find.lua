-- A page of places in an index, the latest first, from a cursor on.
--
-- KEYS  the index by activity, the index by end; on a cluster the hash of orders
-- ARGV  1: now, limit, cursor's time (-1: none) and id
-- Replies {now, id, time, end, order, id, time, end, order, ...}; no end: it has no place in that index

local now, limit, time, id = struct.unpack('>dddI2c0', ARGV[1])
now = clock(now)

-- Byte order, as in sorted sets; Lua's own `<` follows the server's locale.
local function comes_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

local from = 0
if time >= 0 then
  -- Places of the cursor's own millisecond are in reverse byte order: find the first that comes after it.
  from = call('ZCOUNT', K, '(' .. string.format('%.0f', time), '+inf')
  local low, high = from, from + call('ZCOUNT', K, time, time)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if comes_before(call('ZREVRANGE', K, middle, middle)[1], id) then high = middle else low = middle + 1 end
  end
  from = low
end
local found = call('ZREVRANGE', K, from, from + limit - 1, 'WITHSCORES')
local page = {string.format('%.0f', now)}
for i = 1, #found, 2 do
  page[#page + 1] = found[i]
  page[#page + 1] = found[i + 1]
  page[#page + 1] = call('ZSCORE', KEYS[2], found[i])
  page[#page + 1] = KEYS[3] and call('HGET', KEYS[3], found[i]) or false
end
return page
