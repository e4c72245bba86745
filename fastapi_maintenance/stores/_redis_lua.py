"""The scripts: each is one atomic step, and what they return is the truth.

Three keys per switch, in one hash slot. ``state`` is a hash of ``epoch``, ``tag``
(which tells two publications of one number apart) and ``doc`` (the JSON form).
``workers`` is a hash of one field per row, and of what must be lost with the rows:

``.v``
    The protocol; ours is 1.
``.generation``
    A new one means that rows may be missing.
``.run``
    The server process under which it was made.
``.whole``
    ``1`` when a person has vouched for this generation.
``.epoch``
    The largest epoch that any row here has ever reported.
``.settled``
    When those who know of an older state have had time to bring it back. It proves
    nothing; but whoever starts cold meanwhile must not take a loss for *off*.

``lease`` lets one worker of each machine look for the dead at a time.
"""

from __future__ import annotations

from typing import Final

_COMMON: Final = """
local state, rows, lease = KEYS[1], KEYS[2], KEYS[3]
local wrong = ''
local function put(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    if wrong == '' then wrong = reply.err end
    return false
  end
  return reply
end
local function text(number) return string.format('%.0f', number) end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local own = redis.call('HMGET', rows, '.v', '.generation', '.run', '.whole', '.epoch',
  '.settled')
if not own[1] and redis.call('EXISTS', rows) == 1 then
  return redis.error_reply('FOREIGN ' .. rows)
end
if own[1] and own[1] ~= '1' then
  return redis.error_reply('NEWER ' .. rows)
end
local known = redis.call('HMGET', state, 'epoch', 'tag', 'doc')
local epoch = tonumber(known[1] or '0')
if not epoch or not (known[1] and known[2] and known[3])
    and redis.call('EXISTS', state) == 1 then
  return redis.error_reply('FOREIGN ' .. state)
end
local floor = tonumber(own[5] or '0') or 0
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
local uptime = type(info) == 'string' and string.match(info, 'uptime_in_seconds:(%d+)')
local settled = tonumber(own[6] or '0') or 0
local function lost()
  return not own[2] or (run ~= '' and own[3] ~= run)
end
local function renew(nonce, channel)
  if not lost() then return end
  local wait = 200
  if own[2] then wait = 5000
  elseif uptime and tonumber(uptime) < 5 then wait = (5 - tonumber(uptime)) * 1000 end
  settled = now + wait
  put('HSET', rows, '.v', '1', '.generation', nonce, '.run', run, '.whole', '0',
    '.settled', text(settled))
  redis.pcall('PUBLISH', channel, '')
end
local function unsettled() return text(math.max(0, settled - now)) end
"""

# A worker's heartbeat: report its row, bring back a state that was lost, read. A
# write that is refused (out of memory, a replica) must not keep it from reading.
SYNC: Final = (
    _COMMON
    + """
local kernel, field, row = ARGV[1], ARGV[2], ARGV[3]
local mine, tag, doc = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local nonce, channel = ARGV[7], ARGV[8]
renew(nonce, channel)
local asks, changed = 0, false
if mine > epoch and doc == '' then
  asks = 1
elseif mine > epoch then
  if put('HSET', state, 'epoch', ARGV[4], 'tag', tag, 'doc', doc) then
    epoch, known[2], changed = mine, tag, true
  end
elseif mine > 0 and mine == epoch and known[2] ~= tag then
  local higher = math.max(epoch + 1, now)
  if put('HSET', state, 'epoch', text(higher), 'tag', nonce) then
    epoch, known[2], changed = higher, nonce, true
  end
end
if math.max(epoch, mine) > floor then
  put('HSET', rows, '.epoch', text(math.max(epoch, mine)))
end
-- Who knows more than is stored here acknowledges nothing by that: its document first.
if asks == 0 then put('HSET', rows, field, text(now) .. ' ' .. row) end
local found = {}
local taken = redis.pcall('SET', lease, '1', 'NX', 'PX', 2000)
if type(taken) == 'table' and taken.ok then
  local cursor = '0'
  repeat
    local part = redis.call('HSCAN', rows, cursor, 'MATCH', kernel .. '/*',
      'COUNT', 1000)
    cursor = part[1]
    for _, item in ipairs(part[2]) do found[#found + 1] = item end
  until cursor == '0'
end
if changed then redis.pcall('PUBLISH', channel, text(epoch)) end
local news = ''
if epoch ~= mine or known[2] ~= tag then news = known[3] or '' end
return {text(epoch), known[2] or '', news, asks, wrong, run, found, unsettled()}
"""
)

# Compare and set the state; with an empty document, only read it; with a channel,
# for one who is about to set it.
STATE: Final = (
    _COMMON
    + """
local epoch_, tag_, number = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local tag, doc, channel = ARGV[4], ARGV[5], ARGV[6]
local done = 0
if channel ~= '' then renew(tag, channel) end
if doc ~= '' and epoch == epoch_ and (known[2] or '') == tag_
    and number > epoch and number > floor then
  redis.call('HSET', state, 'epoch', ARGV[3], 'tag', tag, 'doc', doc)
  redis.call('HSET', rows, '.v', '1', '.epoch', ARGV[3])
  redis.pcall('PUBLISH', channel, ARGV[3])
  done = 1
end
return {done, text(epoch), known[2] or '', known[3] or '', text(floor), text(now),
  unsettled()}
"""
)

# All rows, for coordinators. It writes nothing but a person's word.
LOOK: Final = (
    _COMMON
    + """
if ARGV[1] ~= '' then
  if lost() or run == '' or own[2] ~= ARGV[1] then return 0 end
  return redis.call('HSET', rows, '.whole', '1') + 1
end
local generation, whole = own[2], own[4]
if lost() then generation, whole = 'lost ' .. run, '0' end
if run == '' then whole = '0' end
return {text(epoch), generation, whole, text(now), redis.call('HGETALL', rows)}
"""
)
