-- Moves the end of a lease; until then the session neither idles nor goes.
--
-- KEYS  K; or all of the session as in commit.lua, when its times must move
-- ARGV  1: now, ms, owner, the user whose index is declared (as in common.lua), the session's id in the index
-- Replies {1} renewed, {2} and the session's times have moved, {0} not the holder, {'K', registry, belongs to} declare
-- these too and repeat

local now, ms, owner, declared, member = struct.unpack('>ddI2c0I2c0I2c0', ARGV[1])
now = clock(now)
local m = main(now)
if not m.live or m.owner ~= owner then return {0} end

local till = now + ms
local first_part = parts_begin(declared)
local life = m.exists and unpack_life(m.life)
if life then prolong(life, till) end
local moves = life and pack_life(life) ~= m.life
if moves then
  local fits = #KEYS > 1 and indexes_fit(declared, m.belongs)
  if not fits or not all_declared(parse_registry(m.registry), first_part) then
    return {'K', m.registry, m.belongs}
  end
end

call('HSET', K, 'lx', till)
if not moves then
  outlive(now, m, till, waiters(m.queue, now))
  return {1}
end
life.writes = life.writes + 1
call('HSET', K, life_fields(pack_life(life)))
for i = 2, first_part - 1 do
  put(KEYS[i], member, life, now)
  go_with_last(KEYS[i], now, life.gone, 0)
end
go_at(life.gone, now, m, till, waiters(m.queue, now), first_part)
return {2}
