-- ------------------------------------------------------------------------------------------------- the indexes

-- An index is one sorted set: of a tenant's sessions of a kind, or of those that belong to one user. A session has up
-- to five members in it, each a letter and its id:
--
--   a  by its last activity      s  by its start      i  when it becomes idle      e  when it ends      g  when it goes
--
-- A score is a time on one of the shelves below, so that a range of scores is what a listing or a count asks for. The
-- first two lie on the shelf of the session's status. Status follows the clock and no write: what is due stays on its
-- shelf until somebody asks for a status and has it settled. Counts by status need no settling: they count what is still
-- to be idle, to end, to go. One that was ended by somebody has no `i` and no `e`; one that ran out has its `e` on a
-- shelf of its own.

local SHELF = 2 ^ 48
local BY_ACTIVITY = {active = 1, idle = 2, ended = 3}
local BY_START = {active = 4, idle = 5, ended = 6}
local ENTERED, IDLES, ENDS, RAN_OUT, GOES = 0, 7, 8, 9, 10

local function score(shelf, time) return shelf * SHELF + stored(time) end
local function text(number) return string.format('%.0f', number) end
local function time_in(a_score) return a_score % SHELF end

-- Byte order, as in sorted sets; Lua's own `<` follows the server's locale.
local function comes_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- Gives a session the place that its life says.
local function put(index, id, l, now)
  local status = status_of(l, now)
  local a, s, g = score(BY_ACTIVITY[status], l.active), score(BY_START[status], l.started), score(GOES, l.gone)
  if status == 'active' then
    call('ZADD', index, a, 'a' .. id, s, 's' .. id, g, 'g' .. id,
      score(IDLES, l.idle), 'i' .. id, score(ENDS, l.ends), 'e' .. id)
  elseif status == 'ended' and l.ended < INFINITY then
    call('ZADD', index, a, 'a' .. id, s, 's' .. id, g, 'g' .. id)
    call('ZREM', index, 'i' .. id, 'e' .. id)
  else
    local shelf = status == 'idle' and ENDS or RAN_OUT
    call('ZADD', index, a, 'a' .. id, s, 's' .. id, g, 'g' .. id, score(shelf, l.ends), 'e' .. id)
    call('ZREM', index, 'i' .. id)
  end
end

local function forget(index, id)
  call('ZREM', index, 'a' .. id, 's' .. id, 'i' .. id, 'e' .. id, 'g' .. id)
end

local function has_place(index, id)
  return call('ZSCORE', index, 'a' .. id) and call('ZSCORE', index, 'g' .. id) and true or false
end

-- The first ids on a shelf whose time has come.
local function due(index, shelf, now, most)
  local ids = call('ZRANGEBYSCORE', index, text(shelf * SHELF), text(score(shelf, now)), 'LIMIT', 0, most)
  for i, member in ipairs(ids) do ids[i] = string.sub(member, 2) end
  return ids
end

-- How many on a shelf have their time yet to come.
local function to_come(index, shelf, now)
  return call('ZCOUNT', index, '(' .. text(score(shelf, now)), text(score(shelf, INFINITY)))
end

-- Takes some of those away that are gone; returns how many.
local function sweep(index, now, most)
  local gone = due(index, GOES, now, most)
  for _, id in ipairs(gone) do forget(index, id) end
  return #gone
end

-- Moves a session to the shelves of a status.
local function shelve(index, id, status)
  local a, s = call('ZSCORE', index, 'a' .. id), call('ZSCORE', index, 's' .. id)
  if a and s then
    call('ZADD', index, score(BY_ACTIVITY[status], time_in(a)), 'a' .. id)
    call('ZADD', index, score(BY_START[status], time_in(s)), 's' .. id)
  end
  call('ZREM', index, 'i' .. id)
end

-- Moves some of those to their shelves whose status has changed with the time; returns whether there may be more.
local function settle(index, now, most)
  local gone, ended = sweep(index, now, most), due(index, ENDS, now, most)
  for _, id in ipairs(ended) do
    shelve(index, id, 'ended')
    call('ZADD', index, RAN_OUT * SHELF + time_in(call('ZSCORE', index, 'e' .. id)), 'e' .. id)
  end
  local idle = due(index, IDLES, now, most)
  for _, id in ipairs(idle) do shelve(index, id, 'idle') end
  return math.max(gone, #ended, #idle) >= most
end

-- An index goes some time after the last of its places, so that most changes need not move its end.
local function go_with_last(index, now, gone, slack)
  local left = call('PTTL', index)
  if gone == INFINITY then
    if left >= 0 then call('PERSIST', index) end
    return
  end
  if left == -1 then
    local last = call('ZREVRANGE', index, 0, 0, 'WITHSCORES')[2]
    gone = last and time_of(time_in(last)) or gone
  end
  local rest = math.max(gone - now, 0)
  if rest < INFINITY and left < rest then expire(index, math.floor(rest * 9 / 8) + 1 + slack) end
end

-- Of what was read of some shelves, members and scores in turn, the earliest that is left, or the latest. It goes on to
-- the next one there.
local function next_of(shelves, latest)
  local first
  for _, shelf in ipairs(shelves) do
    shelf.id, shelf.time = shelf.found[shelf.at], time_in(shelf.found[shelf.at + 1] or 0)
    local is_first = shelf.id and not first
    if shelf.id and first then
      if shelf.time == first.time then is_first = comes_before(first.id, shelf.id) == latest
      else is_first = (shelf.time > first.time) == latest end
    end
    if is_first then first = shelf end
  end
  if first then first.at = first.at + 2 end
  return first
end
