-- Breaks the live lease, whoever holds it, and gives it to the next waiter.
--
-- KEYS  K
-- ARGV  1: now
-- Replies {} if there was none, else {owner, since, till} of what was broken

local now = clock((struct.unpack('>d', ARGV[1])))
local m = main(now)
if not m.live then return {} end
local queue = waiters(m.queue, now)
call('HDEL', K, 'lo', 'lx', 'ls')
outlive(now, m, hand_over(now, queue, m.owner), queue)
return {m.owner, m.since, m.till}
