-- Changes the record of a session, live lease or not.
--
-- KEYS  as in commit.lua
-- ARGV  1: header, packed; then the fields to put, name and value, and those to delete
--
-- Replies
--   {now, changed or not, revision, life, counters, tag, belongs to or false, {name, value, ...}}
--   {'N'} {'E', 1 by the clock, else 0} {'C'}     absent, ended, not the expected record
--   {'K', registry, belongs to} {'F', format}     as in commit.lua

local EXPECTS, IS_ACTIVITY, IS_END, HAS_LIFETIME, HAS_OWN, HAS_EXPIRY, WAITS = 1, 2, 4, 8, 16, 32, 64
local REMEMBERED = 16

local now, id, flags, tag, declared, member, counters, own, expires, lifetime, n_put, n_del =
  struct.unpack('>dc8BBc0I2c0I2c0I2c0I2c0I6c30I2I2', ARGV[1])
local function has(flag) return bit.band(flags, flag) ~= 0 end

now = clock(now)
local m = main(now)
if not m.exists then return {'N'} end
if m.format > FORMAT then return {'F', m.format} end
local first_part = parts_begin(declared)
local life = unpack_life(m.life)

local function answer(changed)
  local fields = {}
  local flat = call('HGETALL', K)
  for i = 1, #flat, 2 do
    if string.byte(flat[i]) == 46 then
      fields[#fields + 1] = string.sub(flat[i], 2)
      fields[#fields + 1] = flat[i + 1]
    end
  end
  return {string.format('%.0f', now), changed, m.rev, m.life, m.counters, m.tag, m.belongs, fields}
end

-- ------------------------------------------------------------------------------------------------- checks

local done = call('HGET', K, 'd') or ''
local function is_done()
  if has(IS_END) and life.ended < INFINITY then return true end
  for at = 1, #done, 8 do
    if string.sub(done, at, at + 7) == id then return true end
  end
end
if is_done() then
  if has(WAITS) then redis.pcall('HSET', K, 'f', FORMAT) end  -- see commit.lua
  return answer(0)
end
local changes_record = n_put + n_del > 0 or has(HAS_OWN) or has(HAS_EXPIRY)
if (changes_record or has(IS_ACTIVITY) or counters ~= '') and not has(IS_END) then
  local over = ended(life, now)
  if over then return over end
end
if has(EXPECTS) and tag ~= m.tag then return {'C'} end
if not indexes_fit(declared, m.belongs) or not all_declared(parse_registry(m.registry), first_part) then
  return {'K', m.registry, m.belongs}
end

-- ------------------------------------------------------------------------------------------------- what becomes of it

if has(HAS_OWN) then life.own = unpack_own(own, 1) end
if has(HAS_EXPIRY) then life.expires = time_of(expires) end
if has(IS_END) then life.ended = status_of(life, now) == 'ended' and life.ends or now end
if has(IS_ACTIVITY) then life.active = now end
stamp(life, has(HAS_LIFETIME) and unpack_lifetime(lifetime) or life.lifetime)
if m.live then prolong(life, m.till) end
life.writes = life.writes + 1
m.life, m.counters = pack_life(life), add_counters(m.counters, counters)
if changes_record or has(IS_END) then m.tag = id end

call('HSET', K, 'm', m.counters, 't', m.tag, 'd', string.sub(done .. id, -8 * REMEMBERED), life_fields(m.life))
local last_put = 1 + 2 * n_put
for i = 2, last_put, SLICE do call('HSET', K, unpack(ARGV, i, math.min(i + SLICE - 1, last_put))) end
for i = last_put + 1, #ARGV, SLICE do call('HDEL', K, unpack(ARGV, i, math.min(i + SLICE - 1, #ARGV))) end

for i = 2, first_part - 1 do
  put(KEYS[i], member, life, now)
  go_with_last(KEYS[i], now, life.gone, 0)
end
local reply = answer(1)
if life.gone ~= m.gone then go_at(life.gone, now, m, m.live and m.till, waiters(m.queue, now), first_part) end
return reply
