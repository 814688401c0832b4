-- Gives a lease, or a place in the queue, up. Works on a full Redis too: HDEL comes first.
--
-- KEYS  K
-- ARGV  1: now, owner

local now, owner = struct.unpack('>dI2c0', ARGV[1])
now = clock(now)
local m = main(now)
local queue = waiters(m.queue, now)

if m.owner == owner then
  call('HDEL', K, 'lo', 'lx', 'ls')
  outlive(now, m, hand_over(now, queue, owner), queue)
else
  local place = place_of(queue, owner)
  if place then
    table.remove(queue, place)
    call('HDEL', K, 'w')
    if #queue > 0 then save_waiters(queue) end
    outlive(now, m, m.live and m.till, queue)
  end
end
return {1}
