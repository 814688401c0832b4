-- Reads a session at one moment and takes its lease, if asked to.
--
-- KEYS  K, K:v (if values are wanted and there may be some), then the logs wanted, then for each collection asked for
--       its hash and its zset
-- ARGV  1: header (below), then the entries' keys, then for each range its lower and upper bound
--
-- Replies
--   {'F', format}       written by a newer version
--   {'L', id}           lost: the registry counts something that is not there
--   {'K'}               there are values: declare K:v and repeat
--   {head}              refused: only lease and queue
--   {head, registry or false (unchanged), fields or false, {namespaces, name, value, ...} or false, logs, entries, ranges}

local WANTS_LEASE, QUEUES, HAS_KNOWN, WANTS_VALUES, HAS_REGISTRY, READS_VALUES_ITSELF = 1, 2, 4, 8, 16, 32

local now, flags, ms, known_rev, known_id, known_tag, owner, channel, n_logs, n_entries, n_ranges, at =
  struct.unpack('>dBddBc0Bc0I2c0Bc0I2I2I2', ARGV[1])
local function asked(flag) return bit.band(flags, flag) ~= 0 end

now = clock(now)
local m = main(now)
if m.exists and m.format > FORMAT then return {'F', m.format} end

-- ------------------------------------------------------------------------------------------------- whose turn

local queue = waiters(m.queue, now)
local place = asked(WANTS_LEASE) and place_of(queue, owner)
local mine = m.live and m.owner == owner
local granted = asked(WANTS_LEASE) and (mine or (not m.live and (#queue == 0 or place == 1)))

local continues, same = false, false
if asked(HAS_KNOWN) and (m.exists or known_rev == 0) then
  if known_rev == (m.exists and m.rev or 0) then
    same = known_id == (m.exists and m.id or '')
    continues = same
  elseif known_rev >= 1 and known_rev < m.rev and m.rev - known_rev < RING then
    continues = ring_at(call('HGET', K, 'c'), known_rev) == known_id
  end
end

local function head(lease_owner, till, since, again)
  local bits = (m.exists and 1 or 0) + (continues and 2 or 0) + (granted and 4 or 0) + (till and 8 or 0)
    + (same and 16 or 0)
  local id, tag, belongs = m.exists and m.id or '', m.exists and m.tag or '', m.exists and m.belongs or ''
  if lease_owner == owner then lease_owner = '' end
  local life, counters = m.exists and m.life or '', m.exists and m.counters or ''
  return struct.pack('>BddddI2I4', bits, now, m.exists and m.rev or 0, till or 0, since or 0, #queue, again)
    .. struct.pack('>Bc0Bc0I2c0I2c0', #id, id, #tag, tag, #belongs, belongs, #lease_owner, lease_owner)
    .. struct.pack('>I2c0I2c0', #life, life, #counters, counters)
end

if asked(WANTS_LEASE) and not granted then
  if asked(QUEUES) then
    local ticket = place and queue[place] or {owner, 0, ''}
    ticket[2] = now + HANDOVER
    if channel ~= '' then ticket[3] = channel end
    if not place then queue[#queue + 1] = ticket end
    save_waiters(queue)
    outlive(now, m, m.live and m.till, queue)
  end
  if m.live then return {head(m.owner, m.till, m.since, math.min(m.till - now, 60000))} end
  local first = queue[1]
  return {head('', nil, nil, first and first[1] ~= owner and math.max(first[2] - now, 0) or 0)}
end

-- ------------------------------------------------------------------------------------------------- reading

local entries = {}
if m.exists and (not same or n_logs + n_entries + n_ranges > 0) then entries = parse_registry(m.registry) end

local function slices(command, key, names, put)
  for from = 1, #names, SLICE do
    local found = call(command, key, unpack(names, from, math.min(from + SLICE - 1, #names)))
    for i, value in ipairs(found) do put(names[from + i - 1], value) end
  end
end

-- Values: each namespace that changed since what is known, whole.
local values = false
if asked(WANTS_VALUES) and m.exists then
  local total, changed, namespaces = 0, {}, {}
  for id, e in pairs(entries) do
    if string.byte(id) == 118 then
      total = total + e[1]
      if not continues or e[2] > known_rev then
        local ns = string.sub(id, 2)
        namespaces[#namespaces + 1], changed[ns] = ns, true
      end
    end
  end
  if total > 0 and KEYS[2] ~= V then return {'K'} end
  if total > 0 and call('HLEN', V) ~= total then return {'L', 'v'} end
  if not asked(READS_VALUES_ITSELF) and #namespaces > 0 then
    values = {namespaces}
    local put = function(name, value)
      values[#values + 1] = name
      values[#values + 1] = value
    end
    local names = {}
    for _, name in ipairs(call('HKEYS', V)) do
      if changed[string.sub(name, 1, string.find(name, '/', 1, true) - 1)] then names[#names + 1] = name end
    end
    slices('HMGET', V, names, put)
  end
end

-- Logs: what follows on the caller's prefix, if its last item is still at its place; else the window.
-- A prefix is of no use when the version it came with is not an ancestor: numbers restart when a session is made anew.
local base = KEYS[2] == V and 2 or 1
local logs = {}
for i = 1, n_logs do
  local count, last, limit, itself
  count, last, limit, itself, at = struct.unpack('>dddB', ARGV[1], at)
  local key = KEYS[base + i]
  local id = string.sub(key, #K + 2)
  local e = entries[id]
  local held = e and e[1] or 0
  if held > 0 and call('LLEN', key) ~= held then return {'L', id} end
  local fits = held > 0 and count > 0 and count <= held and (continues or not asked(HAS_KNOWN))
  if fits then
    if count == held then fits = last == e[2]
    else fits = struct.unpack('>I6', call('LINDEX', key, count - 1)) == last end
  end
  if fits then
    logs[i] = {1, count < held and call('LRANGE', key, count, -1) or {}}
  elseif itself ~= 0 or held == 0 or limit == 0 then
    logs[i] = {0, {}}
  else
    logs[i] = {0, call('LRANGE', key, limit < 0 and 0 or -limit, -1)}
  end
end

-- Collections.
base = base + n_logs
local checked = {}
local function collection(index)
  local hash, zset = KEYS[base + 2 * index + 1], KEYS[base + 2 * index + 2]
  local e = entries[string.sub(hash, #K + 2)]
  if not e then return nil end
  if not checked[index] then
    checked[index] = call('HLEN', hash) == e[1] and call('ZCARD', zset) == e[1] and 'whole' or 'lost'
  end
  return hash, zset, checked[index] == 'lost'
end

local found = {}
for i = 1, n_entries do
  local index
  index, at = struct.unpack('>I2', ARGV[1], at)
  local hash, _, lost = collection(index)
  if lost then return {'L', string.sub(hash, #K + 2)} end
  found[i] = hash and call('HGET', hash, ARGV[1 + i]) or false
end

local ranges = {}
for i = 1, n_ranges do
  local index, reverse, limit
  index, reverse, limit, at = struct.unpack('>I2Bd', ARGV[1], at)
  local hash, zset, lost = collection(index)
  if lost then return {'L', string.sub(hash, #K + 2)} end
  local flat = {}
  if hash and limit ~= 0 then
    local lower, upper = ARGV[2 * i + n_entries], ARGV[2 * i + n_entries + 1]
    local names = reverse ~= 0 and call('ZREVRANGEBYLEX', zset, upper, lower, 'LIMIT', 0, limit)
      or call('ZRANGEBYLEX', zset, lower, upper, 'LIMIT', 0, limit)
    slices('HMGET', hash, names, function(name, value)
      flat[#flat + 1] = name
      flat[#flat + 1] = value
    end)
  end
  ranges[i] = flat
end

-- Record fields, unless the caller has them.
local fields = false
if m.exists and not (asked(HAS_KNOWN) and m.tag == known_tag) then
  fields = {}
  local flat = call('HGETALL', K)
  for i = 1, #flat, 2 do
    if string.byte(flat[i]) == 46 then
      fields[#fields + 1] = string.sub(flat[i], 2)
      fields[#fields + 1] = flat[i + 1]
    end
  end
end

-- ------------------------------------------------------------------------------------------------- the lease

if granted then
  m.since = mine and m.since or now
  m.owner, m.till, m.live = owner, now + ms, true
  call('HSET', K, 'lo', owner, 'lx', m.till, 'ls', m.since)
  if place then
    table.remove(queue, place)
    save_waiters(queue)
  end
  outlive(now, m, m.till, queue)
end

local registry = m.exists and not (same and asked(HAS_REGISTRY)) and m.registry or false
return {
  head(m.live and m.owner or '', m.live and m.till, m.live and m.since, 0),
  registry, fields, values, logs, found, ranges,
}
