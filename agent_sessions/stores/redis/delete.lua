-- Removes a session with all its parts. Waiters keep their places, and the first one gets the lease.
--
-- KEYS  as in commit.lua; the last one is the tombstone of this very deletion
-- ARGV  1: now, 1 if the caller waits for replicas, the user whose index is declared (as in common.lua), the user whom
--       the session is known to belong to, the session's id in the index
-- Replies {1 removed or 0 it was absent, started at}, or {'K', registry, belongs to}: declare these too and repeat

local TOMBSTONE_MS = 60000

local now, waits, declared, belongs, member = struct.unpack('>dBI2c0I2c0I2c0', ARGV[1])
now = clock(now)
local tombstone = KEYS[#KEYS]
local before = call('GET', tombstone)
if before then
  local answer, till, started = struct.unpack('>Bdd', before)
  if till > now then
    if waits ~= 0 then redis.pcall('SET', tombstone, before, 'PX', till - now + spare) end  -- see commit.lua
    return {answer, started}
  end
end

local m = main(now)
local first_part = parts_begin(declared)
-- Who deletes it knows whose it is: no trace of that may stay, so the tombstone can't tell whose place is to go.
if m.found and not (belongs == (m.belongs or '') and all_declared(parse_registry(m.registry), first_part)) then
  return {'K', m.registry, m.belongs or false}
end

-- Also where the main hash is gone (evicted): what is left beside it goes too.
for i = first_part, #KEYS - 1 do call('UNLINK', KEYS[i]) end
for i = 2, first_part - 1 do
  forget(KEYS[i], member)
  go_with_last(KEYS[i], now, now, 0)
end

local queue, held = waiters(m.queue, now), m.live and m.till
if m.exists then
  call('UNLINK', K)
  held = #queue > 0 and hand_over(now, queue)
elseif m.found then
  -- Remains of one past its time; the lease beside them is somebody's running turn.
  call('HDEL', K, 'v', 'i', 'c', 'l', 'p', 'm', 'd', 'b', 't', 'f', 'k', 'n')
  for _, name in ipairs(call('HKEYS', K)) do
    if string.byte(name) == 46 then call('HDEL', K, name) end
  end
end
local answer = m.exists and 1 or 0
m.exists = false
outlive(now, m, held, queue)
local started = m.found and unpack_life(m.life).started or 0
call('SET', tombstone, struct.pack('>Bdd', answer, now + TOMBSTONE_MS, started), 'PX', TOMBSTONE_MS + spare)
return {answer, started}
