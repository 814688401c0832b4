-- Applies one commit, or refuses it whole.
--
-- KEYS  K, the index, that of the user, every part of the session and the new ones (K:v if there are values, or new
--       ones)
-- ARGV  1: header and operations, packed; then their names and payloads, in the order of the operations
--
-- Replies
--   {head, changed entries of the registry}     stored
--   {'R', revision}                 this very commit was stored before
--   {'E', 1 by the clock, else 0}   it has ended
--   {'N'} {'C', revision} {'U'}     not found, conflict, unknown (too long ago to tell)
--   {'A'}                           absent, and not in the indexes yet: enter it there and repeat
--   {'B', owner, till, since}       somebody else's lease is live
--   {'K', registry, belongs to}     keys missing: declare these too and repeat
--   {'F', format} {'L', id}         as in open.lua

local EXPECTS, MUST_EXIST, HOLDS, IS_MAINTENANCE, WAITS = 1, 2, 4, 8, 16

local now, id, flags, expected_rev, expected_id, hold, owner, belongs, declared, member, hashed, counters, begins,
  lifetime, n_put, n_del, n_values, n_logs, n_collections, at =
  struct.unpack('>dc8BdBc0dI2c0I2c0I2c0I2c0I2c0I2c0I2c0c30I2I2I2I2I2', ARGV[1])
local function has(flag) return bit.band(flags, flag) ~= 0 end

now = clock(now)
local m = main(now, true)
local first_part = parts_begin(declared)

-- ------------------------------------------------------------------------------------------------- checks

if m.exists and m.format > FORMAT then return {'F', m.format} end

local ring = m.exists and m.ring or ''
local matches = has(EXPECTS) and expected_rev == (m.exists and m.rev or 0) and expected_id == (m.exists and m.id or '')
local before = not matches and m.exists and ring_find(ring, m.rev, id)
if before then
  -- Who waits for replicas waits for what this connection wrote last.
  if has(WAITS) then redis.pcall('HSET', K, 'f', FORMAT) end
  return {'R', before}
end
if has(EXPECTS) and not matches and not m.exists then return {'N'} end
local life = m.exists and unpack_life(m.life)
local over = life and not has(IS_MAINTENANCE) and ended(life, now)
if over then return over end
if has(EXPECTS) and not matches then
  if m.rev - expected_rev > RING then return {'U'} end
  return {'C', m.rev}
end
if m.live and m.owner ~= owner then return {'B', m.owner, m.till, m.since} end
if has(MUST_EXIST) and not m.exists then return {'A'} end

local entries, order = parse_registry(m.registry)
local whose = m.exists and m.belongs or belongs
if not indexes_fit(declared, whose) or not all_declared(entries, first_part) then
  return {'K', m.registry, m.exists and m.belongs or false}
end
if not m.exists then entries, order = {}, {} end

-- The operations, read before any is applied.
local arg = 2
local function take(n)
  arg = arg + n
  return arg - n
end
local function entry(part)
  return entries[part] or {0, 0, 0}
end
local changed = {}
local function set_entry(part, count, last, issued)
  if not entries[part] then order[#order + 1] = part end
  entries[part] = {count, last, issued}
  changed[#changed + 1] = pack_entry(part, entries[part])
end

local fields = {put = take(2 * n_put), n_put = 2 * n_put, del = take(n_del), n_del = n_del}

local total = 0
for part, e in pairs(entries) do
  if string.byte(part) == 118 then total = total + e[1] end
end
if n_values > 0 and total > 0 and call('HLEN', V) ~= total then return {'L', 'v'} end
local values = {}
for i = 1, n_values do
  local ns, puts, dels
  ns, puts, dels, at = struct.unpack('>I2c0I4I4', ARGV[1], at)
  values[i] = {part = 'v' .. ns, put = take(2 * puts), n_put = 2 * puts, del = take(dels), n_del = dels}
end

local logs = {}
for i = 1, n_logs do
  local index, clear, pop, items
  index, clear, pop, items, at = struct.unpack('>I2BI4I4', ARGV[1], at)
  local key = KEYS[index]
  local part = string.sub(key, #K + 2)
  local e = entry(part)
  clear = clear ~= 0 or pop >= e[1]
  local held = call('LLEN', key)
  if not clear and held ~= e[1] then return {'L', part} end
  local count, last, issued = unpack(e)
  if clear then
    count, last = 0, 0
  elseif pop > 0 then
    count, last = count - pop, struct.unpack('>I6', call('LINDEX', key, -pop - 1))
  end
  if items > 0 then count, last = count + items, issued + items end
  logs[i] = {
    key = key, clear = clear and held > 0, pop = not clear and pop or 0, items = take(items), n = items, issued = issued,
  }
  set_entry(part, count, last, issued + items)
end

local collections = {}
for i = 1, n_collections do
  local index, prefixes, puts, dels
  index, prefixes, puts, dels, at = struct.unpack('>I2I2I4I4', ARGV[1], at)
  local c = {
    hash = KEYS[index], zset = KEYS[index + 1], part = string.sub(KEYS[index], #K + 2),
    prefixes = take(prefixes), n_prefixes = prefixes,
    put = take(2 * puts), n_put = 2 * puts, del = take(dels), n_del = dels,
  }
  local count = entry(c.part)[1]
  c.clear = count == 0
  for j = c.prefixes, c.prefixes + prefixes - 1 do c.clear = c.clear or ARGV[j] == '' end
  local held, sorted = call('HLEN', c.hash), call('ZCARD', c.zset)
  if not c.clear and (held ~= count or sorted ~= count) then return {'L', c.part} end
  c.clear = c.clear and held + sorted > 0
  collections[i] = c
end

-- ------------------------------------------------------------------------------------------------- writes

-- Emptied logs stay in the registry, for their numbers; emptied namespaces, for those who know them full.
local function registry()
  local packed = {}
  for _, part in ipairs(order) do
    local e = entries[part]
    if e[1] > 0 or string.byte(part) ~= 99 then packed[#packed + 1] = pack_entry(part, e) end
  end
  return table.concat(packed)
end

-- The first write is one that a full Redis refuses, so that it refuses the commit whole.
local rev = (m.exists and m.rev or 0) + 1
if not life then
  -- Its course, if it had one elsewhere, or its given end alone; then what is its own.
  local started, active, ended_at, expires, own_at = struct.unpack('>I6I6I6I6', begins)
  life = {
    started = started == NEVER and now or started, active = active == NEVER and now or active,
    ended = time_of(ended_at), expires = time_of(expires), own = unpack_own(begins, own_at), writes = 0,
  }
  stamp(life, unpack_lifetime(lifetime))
elseif not has(IS_MAINTENANCE) then
  life.active = now
  stamp(life, unpack_lifetime(lifetime))
end
if has(HOLDS) then prolong(life, now + hold) end
life.writes = life.writes + 1
local tag = (n_put + n_del > 0 or not m.exists) and id or m.tag

if m.found and not m.exists then
  -- Remains of one that was past its time and not swept yet.
  call('HSET', K, 'f', FORMAT)
  for _, name in ipairs(call('HKEYS', K)) do
    if string.byte(name) == 46 or string.find('bkmd', name, 1, true) then call('HDEL', K, name) end
  end
  for i = first_part, #KEYS do call('UNLINK', KEYS[i]) end
end

local packed_life, counted = pack_life(life), add_counters(m.exists and m.counters or '', counters)
local set = {'v', rev, 'i', id, 'c', ring_put(ring, rev, id), 't', tag, 'f', FORMAT, life_fields(packed_life)}
local function add(name, value)
  set[#set + 1] = name
  set[#set + 1] = value
end
if counters ~= '' then add('m', counted) end
if whose ~= '' and not (m.exists and m.belongs) then add('b', whose) end
if hashed ~= '' and not m.exists then add('n', hashed) end
if n_logs > 0 and n_values + n_collections == 0 then add('k', registry()) end
call('HSET', K, unpack(set))

local function slices(command, key, from, n)
  local sum = 0
  for i = from, from + n - 1, SLICE do
    sum = sum + call(command, key, unpack(ARGV, i, math.min(i + SLICE, from + n) - 1))
  end
  return sum
end

slices('HDEL', K, fields.del, fields.n_del)
slices('HSET', K, fields.put, fields.n_put)

if n_values > 0 and total == 0 then call('UNLINK', V) end
for _, v in ipairs(values) do
  local added = slices('HSET', V, v.put, v.n_put)
  set_entry(v.part, entry(v.part)[1] + added - slices('HDEL', V, v.del, v.n_del), rev, 0)
end

for _, l in ipairs(logs) do
  if l.clear then call('UNLINK', l.key) end
  if l.pop > 0 then call('LTRIM', l.key, 0, -l.pop - 1) end
  for from = 0, l.n - 1, SLICE do
    local items = {}
    for j = from, math.min(from + SLICE, l.n) - 1 do
      items[#items + 1] = struct.pack('>I6', l.issued + j + 1) .. ARGV[l.items + j]
    end
    call('RPUSH', l.key, unpack(items))
  end
end

for _, c in ipairs(collections) do
  if c.clear then call('UNLINK', c.hash, c.zset) end
  for j = c.prefixes, c.prefixes + c.n_prefixes - 1 do
    local low, high = '[' .. ARGV[j], '(' .. ARGV[j] .. '\255'
    local names = call('ZRANGEBYLEX', c.zset, low, high)
    for i = 1, #names, SLICE do call('HDEL', c.hash, unpack(names, i, math.min(i + SLICE - 1, #names))) end
    if #names > 0 then call('ZREMRANGEBYLEX', c.zset, low, high) end
  end
  slices('HSET', c.hash, c.put, c.n_put)
  for from = c.put, c.put + c.n_put - 1, SLICE do
    local members = {}
    for j = from, math.min(from + SLICE, c.put + c.n_put) - 1, 2 do
      members[#members + 1] = 0
      members[#members + 1] = ARGV[j]
    end
    call('ZADD', c.zset, unpack(members))
  end
  slices('HDEL', c.hash, c.del, c.n_del)
  slices('ZREM', c.zset, c.del, c.n_del)
  set_entry(c.part, call('HLEN', c.hash), rev, 0)
end

if n_values + n_collections > 0 then call('HSET', K, 'k', registry()) end

-- ------------------------------------------------------------------------------------------------- lease, expiry, index

local queue, till = waiters(m.queue, now), nil
if has(HOLDS) then
  till = now + hold
  call('HSET', K, 'lo', owner, 'lx', till, 'ls', m.live and m.since or now)
  local place = place_of(queue, owner)
  if place then
    table.remove(queue, place)
    save_waiters(queue)
  end
elseif m.owner or m.queue then
  till = hand_over(now, queue, owner)
end

go_at(life.gone, now, m, till, queue, first_part)

for i = 2, first_part - 1 do
  put(KEYS[i], member, life, now)
  -- Who makes a place takes a few expired ones away, so that an index that nobody lists does not grow for ever.
  if not m.exists then sweep(KEYS[i], now, 10) end
  go_with_last(KEYS[i], now, life.gone, 0)
end

local previous, previous_tag = m.exists and m.id or '', m.exists and m.tag or id
return {
  struct.pack('>dBc0Bc0Bc0I2c0', rev, #previous, previous, #tag, tag, #previous_tag, previous_tag, #whose, whose)
    .. struct.pack('>I2c0I2c0', #packed_life, packed_life, #counted, counted),
  table.concat(changed),
}
