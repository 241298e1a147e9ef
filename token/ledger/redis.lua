-- The ledger of leases, for Redis and Valkey: account.go in Lua. Times are microseconds of ledger time.
-- KEYS: the tenant's clock and members (hash), the mailbox, the group (packed with MessagePack).
-- ARGV[1]: the request as JSON. The answer is JSON; times in it are distances from now.

local req = cjson.decode(ARGV[1])
local POLL, SESSION, JITTER = 1000000, req.session, 1000000
local BUCKETS = 96
local DELIVERY = math.max(50, req.limits and req.limits.unseen or 0)
local STALE = 7 * 24 * 3600 * 1000000 -- when an absent host is forgotten
local HOUR = 3600 * 1000000

-- The head is a hash: the clock, the data's name, whose master it is, and for each host h: when it was seen, j: when it joined without
-- remembering, s: the last answer to it, k: how many hosts it believes there are, n: and b: for which master and which data it has told
-- what it remembers, p: of which data another host says that it has used it.
local head, all, changed = {}, redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do head[all[i]] = all[i + 1] end
local function put(field, value)
  if head[field] == value then return end
  head[field] = value
  changed[#changed + 1] = field
  changed[#changed + 1] = value
end
local function number(field) return tonumber(head[field] or '') end
local function whole(n) return string.format('%.0f', n) end

-- The clock never goes back, and no further than the asking host's monotonic clock allows (req.bound).
local off, last = number('off') or 0, number('last') or 0
local epoch, lost = head.epoch, number('lost') or 0
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

-- A reign is the time in which one process is the master. Its successor has all that was done up to some moment, and nothing of what
-- was done after it: replicas and the disk lag behind. So at the first request of a reign what there is, is known to be whole up to
-- was, and each host tells once (n:) what it has done since. A master that is back at an older state without anybody's noticing (a
-- machine's snapshot) is found by a host that has had a later answer (s:).
local reign = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
local told = req.host and head['n:' .. req.host] ~= nil and head['n:' .. req.host] == head.term
local mine = number('s:' .. (req.host or ''))
if not req.host then mine = last end
local older = req.seen and epoch and head.reign == reign and req.epoch == epoch and (told or not req.host) and mine and mine < req.seen
if not epoch then
  epoch = req.fresh
  if req.epoch ~= '' then lost = t + SESSION end -- the store was not empty when this host last saw it
  put('term', req.fresh)
  put('was', whole(t))
  put('since', whole(t))
  put('whole', req.fresh) -- what is lost is told on account of lost
elseif head.reign ~= reign or older then
  put('term', req.fresh)
  put('was', whole(older and math.min(mine, last) or last))
  put('since', whole(t))
  told = false
end
put('reign', reign)
put('off', whole(off))
put('last', whole(t))
put('epoch', epoch)
put('lost', whole(lost))
if req.host then put('s:' .. req.host, whole(t)) end
local was, since = number('was') or t, number('since') or t

-- Members: a host that has not been seen for req.silence may be using its share on its own. So may one have done that
-- joins without remembering, within the last period.
local hosts = req.hosts or 1
local names = {}
for k, v in pairs(head) do
  local name = string.match(k, '^h:(.*)')
  if name then names[name] = tonumber(v) end
end
local function present(seen) return t - seen <= req.silence end
local function member() return told and names[req.host] and present(names[req.host]) end

-- known is how many hosts there are: as many as each believes, or more, where more have been seen of late.
local known = 0
for _, seen in pairs(names) do
  if t - seen <= HOUR then known = known + 1 end
end
known = math.max(hosts, known)

-- absent sums up, over the hosts that may be on their own, what share(n) says of one that believes to be one of n.
local function absent(per, share)
  local sum, counted = 0, 0
  for name, seen in pairs(names) do
    local joined = number('j:' .. name) or 0
    if t - seen <= HOUR then
      counted = counted + 1
      if not present(seen) or joined ~= 0 and t - joined < per then sum = sum + share(number('k:' .. name) or hosts) end
    end
  end
  return sum + math.max(0, hosts - counted) * share(hosts)
end

-- pending reports whether the new master may lack what a host has done that has not told it yet. A host that was away already when the
-- former one was last heard of has nothing to tell.
local function pending()
  if not req.host or head.whole == head.term then return false end
  local n = 0
  for name, seen in pairs(names) do
    if head['n:' .. name] == head.term or seen < was - req.silence then
      n = n + 1
    else
      return true
    end
  end
  if n < hosts then return true end
  put('whole', head.term)
  return false
end

-- answer ends every request.
local function answer(a)
  if #changed > 0 then redis.call('HSET', KEYS[1], unpack(changed)) end
  a.now, a.epoch = whole(t), epoch
  return cjson.encode(a)
end

-- station is what a host has to know that is to join: whether, and since when, it has to tell what it did.
local function station(a)
  a.term, a.told, a.was, a.gap, a.hosts, a.members = head.term, told or false, whole(was), t - was, known, {}
  for name, seen in pairs(names) do
    if present(seen) then a.members[#a.members + 1] = name end
  end
  if #a.members == 0 then a.members = nil end
  return a
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

local function room(r) return math.min(DELIVERY, r.all or r.n) end

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

-- soon is a wait for what is lost. Within the first minute the hosts will most likely have told it.
local function soon(wait)
  if req.host and t < lost - SESSION + 60000000 then return POLL, true end
  return wait
end

-- unlimited looks at the rate itself (all): of what is kept back for others nothing may be left, which is not the same.
local function unlimited(r) return (r.all or r.n) == 0 end

local function messages(a, r)
  if unlimited(r) then return 0 end
  if lost ~= 0 and t < lost + r.per then return soon(lost + r.per - t) end
  if pending() and t < since + r.per then return POLL, true end
  local used = #a.done + count(a.open)
  local over = used - r.n
  if over >= #a.done then return POLL, true end
  if over >= 0 then return a.done[over + 1] + r.per - t, false, true end
  return math.max(0, a.last + gap(a, r, used) - t), false, true
end

local function recipients(y, r)
  if unlimited(r) then return 0 end
  if lost ~= 0 and t < lost + r.per then return soon(lost + r.per - t) end
  local used, need = booked(y), room(r)
  for _, h in pairs(y.open) do used = used + h[2] end
  if used + need <= r.n then return 0 end
  for _, b in ipairs(y.sent) do
    used = used - b[2]
    if used + need <= r.n then return b[1] + r.per - t end
  end
  return POLL, true
end

-- unknown returns how much less there is for the sake of hosts that have not told a new master what they did, though the window is over:
-- the messages that they may have under way, and the recipients that all may have had since the former one was last heard of.
local function unknown(l)
  local messages, recipients = 0, 0
  if pending() then
    local m = l.messages
    if t < since + m.per + SESSION then messages = math.min(l.connections, m.n) end
    recipients = m.n * math.max(1, math.ceil((since - was) / m.per)) * DELIVERY
  end
  -- How many mailboxes of a group were at work nobody knows: as much as its busiest 96th of the window had.
  return messages, function(r, y)
    local most = recipients
    for _, b in ipairs(y and recipients > 0 and y.sent or {}) do most = math.max(most, b[2]) end
    return t < since + r.per + SESSION and most or 0
  end
end

-- reduced returns the limits less what absent hosts may be using: see Shared.
local function reduced(l, g)
  if not req.host then return l end
  local m = l.messages
  local gone, less = unknown(l)
  local rest = math.max(0, m.n - math.min(l.connections, m.n))
  local function reserve(r, y)
    local kept = math.floor(r.n * req.reserve / 100)
    local function spare(n)
      local x = math.floor(kept / n)
      return x < room(r) and 0 or x
    end
    local sum, counted = 0, 0
    for name, seen in pairs(names) do
      if t - seen <= HOUR then
        counted, sum = counted + 1, sum + spare(number('k:' .. name) or hosts)
      end
    end
    return {n = r.n - sum - math.max(0, hosts - counted) * spare(hosts) - less(r, y), per = r.per, all = r.n}
  end
  return {
    messages = {n = m.n - gone - absent(m.per, function(n) return math.floor(rest / n) end), per = m.per, all = m.n}, recipients = reserve(l.recipients),
    connections = math.max(1, l.connections - absent(m.per, function(n) return math.floor(l.connections / n) end)),
    group = l.group and reserve(l.group, g),
  }
end

local limits = req.limits
local function account()
  local a = load(KEYS[2], {open = {}, sent = {}, done = {}, last = 0, shrunk = 0, shrunkAt = 0, till = 0, class = '', why = ''})
  a.limits = limits or a.limits
  return a
end
local function group(l)
  local g = l and l.group and load(KEYS[3], {open = {}, sent = {}})
  if g then g.per = l.group.per end
  return g
end

-- groupOf is the group of a lease that is out: the mailbox may have had its last one without, or another host may have told of it.
local function groupOf(a)
  local g = group(a.limits) or load(KEYS[3], nil)
  return g and g.per and g or nil
end

local function store(a, g)
  local l = a.limits
  if not l then return end
  save(KEYS[2], a, math.max(l.messages.per, l.recipients.per, a.till - t))
  if g then save(KEYS[3], g, g.per) end
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
    if not member() then return station{rejoin = true} end
    put('h:' .. req.host, whole(t))
    put('k:' .. req.host, whole(req.known))
  end
  local a, g = account(), group(limits)
  local l = reduced(limits, g)
  local per = {messages = l.messages.per, recipients = l.recipients.per, group = l.group and l.group.per}
  local begin = 0
  for _, o in ipairs(obstacles(a, g, l)) do
    local gone = lost ~= 0 and per[o[2]] ~= nil and t < lost + per[o[2]] and 'data' or per[o[2]] and pending() and 'master' or nil
    local wait = o[1] - (o[4] and limits.ahead or 0)
    if wait > 0 then return {wait = wait, cause = o[2], reason = a.why, lost = gone} end
    begin = begin + math.max(0, o[1])
  end
  confirm(a)
  if head.whole == head.term then a.again = nil end
  a.open[req.id] = {t + begin, room(l.recipients)}
  a.last = math.max(a.last, t + begin)
  if g then g.open[req.id] = {t + begin, room(l.group)} end
  store(a, g)
  return {lease = true, begin = begin}
end

-- again enters a lease that a former master gave, once in a reign. Its place has begun so long ago.
function ops.again()
  local a, g = account(), group(limits)
  if not a.again or a.again.term ~= head.term then a.again = {term = head.term, ids = {}} end
  if not a.again.ids[req.id] then
    a.again.ids[req.id] = 1
    if not a.open[req.id] then
      a.open[req.id] = {t - req.age, room(limits.recipients)}
      if g then g.open[req.id] = {t - req.age, room(limits.group)} end
    end
    a.last = math.max(a.last, t - req.age)
  end
  store(a, g)
  return {}
end

-- settle ends a lease: now, or so long ago where a former master was told.
function ops.settle()
  local now = math.min(t, t - (req.age or 0))
  local a = account()
  if not a.limits or not a.open[req.id] then return {} end
  local g, o = req.grouped and groupOf(a), req.outcome
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
    verdict(a, now)
    if a.limits.recipients.n > 0 then book(a, o.recipients, a.limits.recipients.per, now) end
    if g then book(g, o.group, g.per, now) end
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
  local a, g = account(), group(limits)
  local l, next = reduced(limits, g), 0
  for _, o in ipairs(obstacles(a, g, l)) do
    if not o[3] then next = math.max(next, o[1]) end
  end
  if lost ~= 0 then next = math.max(next, lost + l.messages.per - t) end
  if pending() then next = math.max(next, since + l.messages.per - t) end
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

-- join makes the host a member, once it has told what it remembers of this data and of the former reign. It says whom it knew.
function ops.join()
  if req.term ~= head.term then return station{rejoin = true} end
  local joined = 0
  if not req.remembers and not (names[req.host] and present(names[req.host])) then joined = t end
  put('h:' .. req.host, whole(t))
  put('j:' .. req.host, whole(joined))
  put('n:' .. req.host, head.term)
  put('k:' .. req.host, whole(req.known))
  for _, name in ipairs(req.seen and req.seen >= was - req.silence and req.peers or {}) do
    if (names[name] or 0) < was then put('h:' .. name, whole(was)) end
  end
  for _, name in ipairs(lost ~= 0 and req.peers or {}) do put('p:' .. name, epoch) end
  for name, seen in pairs(names) do -- hosts that were renamed or taken away
    if t - seen > STALE and name ~= req.host then redis.call('HDEL', KEYS[1], 'h:' .. name, 'j:' .. name, 'b:' .. name, 's:' .. name, 'k:' .. name, 'n:' .. name, 'p:' .. name) end
  end
  told = true
  if lost == 0 then return station{} end
  if req.remembers then put('b:' .. req.host, epoch) end
  local back, all = 0, true
  for field, v in pairs(head) do
    local kind, name = string.match(field, '^([bp]):(.*)')
    if kind == 'b' and v == epoch then back = back + 1 end
    if kind == 'p' and v == epoch and head['b:' .. name] ~= epoch then all = false end
  end
  if back >= hosts and all then put('lost', '0') end
  return station{}
end

-- beat tells that the host is there.
function ops.beat()
  if not member() then return station{rejoin = true} end
  put('h:' .. req.host, whole(t))
  put('k:' .. req.host, whole(req.known))
  return station{}
end

return answer(ops[req.op]())
