-- The ledger of leases, for Redis and Valkey: account.go in Lua. Times are microseconds of ledger time.
-- KEYS: the tenant's clock and members (hash), the mailbox, the group (packed with MessagePack).
-- ARGV[1]: the request as JSON. The answer is JSON; times in it are distances from now.

local req = cjson.decode(ARGV[1])
local POLL, SESSION, JITTER = 1000000, req.session, 1000000
local BUCKETS = 96
local DELIVERY = math.max(50, req.limits and req.limits.unseen or 0)
local STALE = 7 * 24 * 3600 * 1000000 -- when an absent host is forgotten

-- The clock never goes back, and no further than the asking host's monotonic clock allows (req.bound).
local saved = redis.call('HMGET', KEYS[1], 'off', 'last', 'epoch', 'lost')
local off, last = tonumber(saved[1]) or 0, tonumber(saved[2]) or 0
local epoch, lost = saved[3], tonumber(saved[4]) or 0
local raw = req.now
if not raw then
  local now = redis.call('TIME')
  raw = now[1] * 1000000 + now[2]
end
local t = raw + off
if req.bound and t > math.max(req.bound, last) + JITTER then
  off = off - (t - math.max(req.bound, last))
elseif t < last - JITTER then
  off = off + (last - t)
end
t = math.max(last, raw + off)

local function whole(n) return string.format('%.0f', n) end

-- Each host's last answer; the server may be back at an older state, which others may have led on since.
local mine = req.host and tonumber(redis.call('HGET', KEYS[1], 's:' .. req.host) or '') or not req.host and last or 0
if not epoch then
  epoch = req.fresh
  if req.epoch ~= '' then lost = t + SESSION end -- the store was not empty when this host last saw it
elseif req.seen and req.epoch == epoch and mine < req.seen then
  -- All that there is may lack the latest, so the hosts tell it anew.
  epoch, lost = req.fresh, t + SESSION
  for _, k in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.match(k, '^[hjbs]:') then redis.call('HDEL', KEYS[1], k) end
  end
end
redis.call('HSET', KEYS[1], 'off', whole(off), 'last', whole(t), 'epoch', epoch, 'lost', whole(lost))
if req.host then redis.call('HSET', KEYS[1], 's:' .. req.host, whole(t)) end

-- answer ends every request.
local function answer(a)
  a.now, a.epoch = whole(t), epoch
  return cjson.encode(a)
end

-- Members: a host that has not been seen for req.silence may be using its share on its own. So may one have done that
-- joins without remembering, within the last period.
local hosts = req.hosts or 1
local function missing(per)
  local seen, all = 0, redis.call('HGETALL', KEYS[1])
  local fields = {}
  for i = 1, #all, 2 do fields[all[i]] = all[i + 1] end
  for k, v in pairs(fields) do
    if string.sub(k, 1, 2) == 'h:' then
      local joined = tonumber(fields['j:' .. string.sub(k, 3)]) or 0
      if t - tonumber(v) <= req.silence and (joined == 0 or t - joined >= per) then seen = seen + 1 end
    end
  end
  return math.max(0, hosts - seen)
end

local function member()
  local v = tonumber(redis.call('HGET', KEYS[1], 'h:' .. req.host) or '')
  return v and t - v <= req.silence
end

-- load leaves aside what comes from before the data was lost.
local function load(key, new)
  local s = redis.call('GET', key)
  local state = s and cmsgpack.unpack(s)
  return state and state.epoch == epoch and state or new
end

local function save(key, state, per)
  state.epoch = epoch
  local ttl = math.ceil((2 * per + SESSION) / 1000)
  redis.call('SET', key, cmsgpack.pack(state), 'PX', whole(math.max(ttl, req.ttl or 0)))
end

local function count(set)
  local n = 0
  for _ in pairs(set) do n = n + 1 end
  return n
end

-- connections leaves out the leases that keep no connection any more.
local function connections(a)
  local n = 0
  for _, h in pairs(a.open) do
    if not h[3] then n = n + 1 end
  end
  return n
end

-- begun counts the leases whose place has begun.
local function begun(a)
  local n = 0
  for _, h in pairs(a.open) do
    if h[1] <= t then n = n + 1 end
  end
  return n
end

local function room(r) return math.min(DELIVERY, r.n) end

local function booked(y)
  local n = 0
  for _, b in ipairs(y.sent) do n = n + b[2] end
  return n
end

local function book(y, n, per, at)
  if n <= 0 then return end
  local b = y.sent[#y.sent]
  if b and at <= b[1] then
    b[2] = b[2] + n
  else
    y.sent[#y.sent + 1] = {at + math.floor(per / BUCKETS), n}
  end
end

local function verdict(a, at)
  if a.limits and a.limits.messages.n == 0 then return end -- nobody asks
  local i = #a.done
  while i > 0 and a.done[i] > at do i = i - 1 end
  table.insert(a.done, i + 1, at)
end

-- keep drops what comes before the first element for which old is false.
local function keep(list, old)
  local i = 1
  while list[i] and old(list[i]) do i = i + 1 end
  if i == 1 then return list end
  local rest = {}
  for j = i, #list do rest[#rest + 1] = list[j] end
  return rest
end

local function forgetTally(y, per)
  local expired = {}
  for id, h in pairs(y.open) do
    if t - h[1] >= SESSION then expired[#expired + 1] = id end
  end
  local ends = {}
  for _, id in ipairs(expired) do
    local h = y.open[id]
    y.open[id] = nil
    book(y, h[2], per, h[1] + SESSION)
    ends[#ends + 1] = h[1] + SESSION
  end
  y.sent = keep(y.sent, function(b) return t - b[1] >= per end)
  return ends
end

local function forget(a, l)
  for _, at in ipairs(forgetTally(a, l.recipients.per)) do verdict(a, at) end
  a.done = keep(a.done, function(d) return t - d >= l.messages.per end)
  if a.till <= t then a.till, a.class, a.why = 0, '', '' end
end

local function withheld(a, per)
  if a.shrunk == 0 or per <= 0 then return 0 end
  return math.max(0, a.shrunk - math.floor((t - a.shrunkAt) / per))
end

local function gap(a, r, used)
  if used < math.max(1, math.floor(r.n / 3)) then return 0 end
  return math.max(0, math.floor(((a.done[1] or a.last) + r.per - a.last) / (r.n - used + math.floor(r.n / 7))))
end

local function messages(a, r)
  if r.n == 0 then return 0 end -- no limit
  if lost ~= 0 and t < lost + r.per then return lost + r.per - t end
  local used = #a.done + count(a.open)
  local over = used - r.n
  if over >= #a.done then return POLL, true end
  if over >= 0 then return a.done[over + 1] + r.per - t, false, true end
  return math.max(0, a.last + gap(a, r, used) - t), false, true
end

local function recipients(y, r)
  if r.n == 0 then return 0 end
  if lost ~= 0 and t < lost + r.per then return lost + r.per - t end
  local used, need = booked(y), room(r)
  for _, h in pairs(y.open) do used = used + h[2] end
  if used + need <= r.n then return 0 end
  for _, b in ipairs(y.sent) do
    used = used - b[2]
    if used + need <= r.n then return b[1] + r.per - t end
  end
  return POLL, true
end

-- reduced returns the limits less what absent hosts may be using: see Shared.
local function reduced(l)
  if not req.host then return l end
  local m = l.messages
  local absent = missing(m.per)
  local share = math.floor(math.max(0, m.n - math.min(l.connections, m.n)) / hosts)
  local function reserve(r) return {n = r.n - hosts * r.share, per = r.per} end
  return {
    messages = {n = m.n - absent * share, per = m.per}, recipients = reserve(l.recipients),
    connections = math.max(1, l.connections - absent * math.floor(l.connections / hosts)),
    group = l.group and reserve(l.group),
  }
end

local limits = req.limits
local function account()
  local a = load(KEYS[2], {open = {}, sent = {}, done = {}, last = 0, shrunk = 0, shrunkAt = 0, till = 0, class = '', why = ''})
  a.limits = limits or a.limits
  return a
end
local function group(l) return l and l.group and load(KEYS[3], {open = {}, sent = {}}) end

local function store(a, g)
  local l = a.limits
  if not l then return end
  save(KEYS[2], a, math.max(l.messages.per, l.recipients.per, a.till - t))
  if g then save(KEYS[3], g, l.group.per) end
end

-- obstacles lists {wait, cause, poll, ahead} in the order in which they are told.
local function obstacles(a, g, l)
  forget(a, l)
  local list = {{math.max(0, a.till - t), 'paused'}, {0, 'connections'}}
  if connections(a) >= math.max(1, l.connections - withheld(a, l.messages.per)) then list[2] = {POLL, 'connections', true} end
  local w, poll, ahead = messages(a, l.messages)
  list[3] = {w, 'messages', poll, ahead}
  w, poll = recipients(a, l.recipients)
  list[4] = {w, 'recipients', poll}
  if g then
    forgetTally(g, l.group.per)
    w, poll = recipients(g, l.group)
    list[5] = {w, 'group', poll}
  end
  return list
end

-- A host that has not heard the answer to what it tells of its own sending tells it again, with what has come since. So the
-- mailbox keeps what each host has told last, and under which name, until that host asks for a lease: it does so when all is told.

local function takeOut(list, v)
  for i, x in ipairs(list) do
    if x == v then return table.remove(list, i) end
  end
end

local function takeOutSent(y, sent)
  for _, b in ipairs(sent) do
    for i, x in ipairs(y.sent) do
      if x[1] == b[1] then
        x[2] = x[2] - b[2]
        if x[2] <= 0 then table.remove(y.sent, i) end
        break
      end
    end
  end
end

local function takeBack(a, g, told)
  for _, id in ipairs(told.open) do
    a.open[id] = nil
    if g then g.open[id] = nil end
  end
  for _, at in ipairs(told.done) do takeOut(a.done, at) end
  takeOutSent(a, told.sent)
  if g then takeOutSent(g, told.groupSent) end
end

-- confirm forgets what this host has told, and what others told so long ago that it has left the windows.
local function confirm(a)
  local l, rest = a.limits, nil
  for _, x in ipairs(a.told or {}) do
    if x.host ~= req.host and t - x.at < 2 * math.max(l.messages.per, l.recipients.per) + SESSION then
      rest = rest or {}
      rest[#rest + 1] = x
    end
  end
  a.told = rest
end

local ops = {}

function ops.take()
  if req.host then
    if not member() then return {rejoin = true} end
    redis.call('HSET', KEYS[1], 'h:' .. req.host, whole(t))
  end
  local a, l = account(), reduced(limits)
  local g = group(limits)
  local per = {messages = l.messages.per, recipients = l.recipients.per, group = l.group and l.group.per}
  local begin = 0
  for _, o in ipairs(obstacles(a, g, l)) do
    local gone = lost ~= 0 and per[o[2]] ~= nil and t < lost + per[o[2]]
    local wait = o[1] - (o[4] and limits.ahead or 0)
    if wait > 0 then return {wait = wait, cause = o[2], reason = a.why, lost = gone} end
    begin = begin + math.max(0, o[1])
  end
  confirm(a)
  a.open[req.id] = {t + begin, room(l.recipients)}
  a.last = math.max(a.last, t + begin)
  if g then g.open[req.id] = {t + begin, room(l.group)} end
  store(a, g)
  return {lease = true, begin = begin}
end

function ops.settle()
  local a = account()
  if not a.limits or not a.open[req.id] then return {} end
  local g, o = req.grouped and group(a.limits), req.outcome
  if o.open then
    a.open[req.id][3] = 1
    store(a, g)
    return {}
  end
  local given = a.open[req.id][1]
  a.open[req.id] = nil
  if g then g.open[req.id] = nil end
  if o.concurrency then
    a.shrunk = math.max(0, math.min(withheld(a, a.limits.messages.per) + 1, a.limits.connections - 1))
    a.shrunkAt = t
  end
  if o.submitted then
    verdict(a, t)
    if a.limits.recipients.n > 0 then book(a, o.recipients, a.limits.recipients.per, t) end
    if g then book(g, o.group, a.limits.group.per, t) end
  elseif given > t then -- it has ended before its place began, and gives its turn back
    a.last = t
    for _, h in pairs(a.open) do a.last = math.max(a.last, h[1]) end
  end
  store(a, g)
  return {}
end

function ops.pause()
  local a = account()
  a.till, a.class, a.why = 0, '', ''
  if req.pause > 0 then a.till, a.class, a.why = t + req.pause, req.class, req.reason end
  -- A mailbox that was never used has no limits yet; the pause alone decides how long the key lives.
  local l = a.limits
  save(KEYS[2], a, math.max(l and l.messages.per or 0, l and l.recipients.per or 0, a.till - t))
  return {}
end

function ops.usage()
  local a, l = account(), reduced(limits)
  local g, next = group(limits), 0
  for _, o in ipairs(obstacles(a, g, l)) do
    if not o[3] then next = math.max(next, o[1]) end
  end
  return {
    messages = #a.done + begun(a), recipients = booked(a), leases = connections(a), group = g and booked(g) or 0,
    shrunk = math.min(withheld(a, l.messages.per), math.max(0, l.connections - 1)),
    next = next, paused = math.max(0, a.till - t), class = a.class, reason = a.why,
  }
end

-- book adds what a host has granted on its own, or what the store has lost.
function ops.book()
  local a, g = account(), group(limits)
  local others = {}
  for _, x in ipairs(a.told or {}) do
    if x.host ~= req.host or x.group ~= (g and KEYS[3] or '') then
      others[#others + 1] = x
    elseif x.name == req.name then
      takeBack(a, g, x)
    end
  end
  local told = {host = req.host, group = g and KEYS[3] or '', name = req.name, at = t, open = {}, done = {}, sent = {}, groupSent = {}}
  others[#others + 1] = told
  a.told = others
  for id, h in pairs(req.open or {}) do
    a.open[id] = {t - h[1], h[2]}
    if g then g.open[id] = {t - h[1], h[3]} end
    told.open[#told.open + 1] = id
  end
  for _, age in ipairs(req.done or {}) do
    verdict(a, t - age)
    told.done[#told.done + 1] = t - age
  end
  local function merge(y, sent, into)
    for _, b in ipairs(sent or {}) do
      y.sent[#y.sent + 1] = {t - b[1], b[2]}
      into[#into + 1] = {t - b[1], b[2]}
    end
    table.sort(y.sent, function(x, z) return x[1] < z[1] end)
  end
  merge(a, req.sent, told.sent)
  if g then merge(g, req.groupSent, told.groupSent) end
  a.last = math.max(a.last, t)
  store(a, g)
  return {}
end

-- join makes the host a member. One that remembers what it did since it was last seen has booked it before.
function ops.join()
  local seen = tonumber(redis.call('HGET', KEYS[1], 'h:' .. req.host) or '')
  local joined = 0
  if not req.remembers and not (seen and t - seen <= req.silence) then joined = t end
  redis.call('HSET', KEYS[1], 'h:' .. req.host, whole(t), 'j:' .. req.host, whole(joined))
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do -- hosts that were renamed or taken away
    local name = string.match(all[i], '^h:(.*)')
    if name and t - tonumber(all[i + 1]) > STALE then redis.call('HDEL', KEYS[1], 'h:' .. name, 'j:' .. name, 'b:' .. name, 's:' .. name) end
  end
  if lost == 0 then return {} end
  if req.remembers then redis.call('HSET', KEYS[1], 'b:' .. req.host, epoch) end
  local back = 0
  for k, v in pairs(redis.call('HGETALL', KEYS[1])) do
    if type(v) == 'string' and string.sub(v, 1, 2) == 'b:' then back = back + 1 end
  end
  if back >= hosts then redis.call('HSET', KEYS[1], 'lost', '0') end
  return {}
end

-- beat tells that the host is there.
function ops.beat()
  if not member() then return {rejoin = true} end
  redis.call('HSET', KEYS[1], 'h:' .. req.host, whole(t))
  return {}
end

return answer(ops[req.op]())
