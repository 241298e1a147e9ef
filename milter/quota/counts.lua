-- Admission counts that several hosts share, for Redis and Valkey: admission_slots.go in Lua, but that each stretch keeps the exact time of its
-- last message. Times are microseconds; those in requests and answers are distances from now.
-- KEYS: the clock (hash), then one key for each entry of req.keys (packed with MessagePack: windows by kind and period).
-- ARGV[1]: the request as JSON. The answer is JSON.

local req = cjson.decode(ARGV[1])
local JITTER, SLOTS = 1000000, 12
local CLOCK_LIFE = 62 * 24 * 3600 * 1000 -- ms: longer than any window

-- The clock follows the server's, but never goes back, and no further than the asking host's monotonic clock allows (req.bound).
local saved = redis.call('HMGET', KEYS[1], 'off', 'last', 'epoch')
local off, last, epoch = tonumber(saved[1]) or 0, tonumber(saved[2]) or 0, saved[3]
local raw = req.now
if not raw then
  local now = redis.call('TIME')
  raw = now[1] * 1000000 + now[2]
end
local most = req.bound and math.max(req.bound, last)
local t = raw + off
if most and t > most + JITTER then
  off = off + most - t
elseif t < last - JITTER then
  off = off + last - t
end
t = math.max(last, raw + off)

local function whole(n) return string.format('%.0f', n) end

if not epoch then epoch = req.fresh end
redis.call('HSET', KEYS[1], 'off', whole(off), 'last', whole(t), 'epoch', epoch)
redis.call('PEXPIRE', KEYS[1], whole(CLOCK_LIFE))

local function answer(a)
  a.now, a.epoch = whole(t), epoch
  return cjson.encode(a)
end

-- A window is a list of {number of the stretch, time of the last message in it, how many}, the oldest first.
local function period(id) return tonumber(string.sub(id, 2)) end

local function load(key)
  local packed = redis.call('GET', key)
  local state = packed and cmsgpack.unpack(packed) or {}
  for id, w in pairs(state) do
    local keep = {}
    for _, s in ipairs(w) do
      if s[2] + period(id) > t then keep[#keep + 1] = s end
    end
    state[id] = keep
  end
  return state
end

local function save(key, state)
  local ends = t
  for id, w in pairs(state) do
    if #w > 0 then ends = math.max(ends, w[#w][2] + period(id)) end
  end
  redis.call('SET', key, cmsgpack.pack(state), 'PX', whole(math.ceil((ends - t) / 1000) + 1000))
end

-- add counts n at a time, which may be before others.
local function add(state, id, n, at)
  local w = state[id] or {}
  state[id] = w
  local number = math.floor(at / math.ceil(period(id) / SLOTS))
  local i = #w
  while i > 0 and w[i][1] > number do i = i - 1 end
  if i > 0 and w[i][1] == number then
    w[i][2], w[i][3] = math.max(w[i][2], at), w[i][3] + n
  else
    table.insert(w, i + 1, {number, at, n})
  end
end

-- opens returns how long until a window has room for so many: 0 for now, -1 for never.
local function opens(state, rate, need)
  if need <= 0 then return 0 end
  if need > rate.n then return -1 end
  local w, total = state[rate.id] or {}, 0
  for _, s in ipairs(w) do total = total + s[3] end
  if total + need <= rate.n then return 0 end
  for _, s in ipairs(w) do
    total = total - s[3]
    if total + need <= rate.n then return s[2] + period(rate.id) - t end
  end
  return period(rate.id)
end

local function need(k, rate) return string.sub(rate.id, 1, 1) == 'm' and 1 or k.recipients end

-- obstacle returns the rate in the way that opens last, and when.
local function obstacle(k, state)
  local at, wait = 0, 0
  for j, rate in ipairs(k.rates) do
    local o = opens(state, rate, need(k, rate))
    if o ~= 0 and wait >= 0 and (o < 0 or o > wait) then at, wait = j, o end
  end
  return at, wait
end

-- told words the windows that a host asked about: age and number of each stretch.
local function told(k, state)
  local all = {}
  for j, rate in ipairs(k.rates) do
    local words = {}
    for _, s in ipairs(state[rate.id] or {}) do
      words[#words + 1] = whole(t - s[2])
      words[#words + 1] = whole(s[3])
    end
    all[j] = table.concat(words, ' ')
  end
  return all
end

local ops = {}

-- commit counts a message for all its keys, or for none.
function ops.commit()
  if req.epoch ~= '' and req.epoch ~= epoch then return {rejoin = true} end
  local states, a = {}, {states = {}}
  for i, k in ipairs(req.keys) do
    states[i] = load(KEYS[i + 1])
    local j, wait = obstacle(k, states[i])
    if j > 0 and not a.refused then a.refused, a.rate, a.wait = i, j, wait end
  end
  for i, k in ipairs(req.keys) do
    if not a.refused then
      for _, rate in ipairs(k.rates) do
        local n = need(k, rate)
        if n > 0 then add(states[i], rate.id, n, t) end
      end
      save(KEYS[i + 1], states[i])
    end
    a.states[i] = told(k, states[i])
  end
  return a
end

-- book adds what a host has admitted on its own, or what the server has lost.
function ops.book()
  for i, k in ipairs(req.keys) do
    local state = load(KEYS[i + 1])
    for _, p in ipairs(k.past) do
      if p.age < period(p.id) then add(state, p.id, p.n, t - p.age) end
    end
    save(KEYS[i + 1], state)
  end
  return {}
end

-- beat only tells the epoch: whether the data is that which the host knows.
function ops.beat() return {} end

return answer(ops[req.op]())
