//! What Redis does for hubs at once, each a script of Lua. They own nothing: keys and arguments come with each call.

/// Says in which epoch numbers are given, behind which entry it began, and how far it has come. A new one begins where the server is another or was started anew, or is
/// told to begin; if it is told to skip, behind a number that no entry has. Last it says which epochs were before, in their order, each with the last entry of it that those
/// behind follow.
pub const BEGIN: &str = "local meta, stream = KEYS[1], KEYS[2]
local run, fresh, mine, last, force = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local epoch, seq = redis.call('HGET', meta, 'epoch'), tonumber(redis.call('HGET', meta, 'seq') or '0')
local line = redis.call('HGET', meta, 'line') or ''
if not epoch then redis.call('DEL', stream) end
if not epoch or redis.call('HGET', meta, 'run') ~= run or force ~= 'no' or (mine == epoch and last > seq) then
  local ended = seq
  if last > seq then seq = last end
  if not epoch or mine == epoch then ended = seq end
  if epoch or mine ~= '' then line = string.sub(line .. ' ' .. (epoch or mine) .. ':' .. ended, -400) end
  if force == 'skip' then seq = seq + 1 end
  epoch = fresh
  redis.call('HSET', meta, 'epoch', epoch, 'run', run, 'seq', seq, 'began', seq, 'highest', 0, 'line', line)
end
return {epoch, redis.call('HGET', meta, 'began'), tostring(seq), line}";

/// Numbers a message.
pub const PUBLISH: &str = "local meta, stream = KEYS[1], KEYS[2]
local topic, id, body, me, request, most, numbers, ids, channel = unpack(ARGV)
local epoch = redis.call('HGET', meta, 'epoch')
if not epoch then return {'gone', ''} end
if id ~= '' then
  local known = redis.call('GET', id)
  if known then return {'known', known} end
end
local key = meta .. ':' .. epoch .. ':' .. topic
local offset, highest = redis.call('INCR', key), tonumber(redis.call('HGET', meta, 'highest') or '0')
if offset == 1 and highest > 0 then
  offset = highest + 1
  redis.call('SET', key, offset)
end
redis.call('PEXPIRE', key, numbers)
if offset > highest then redis.call('HSET', meta, 'highest', offset) end
local seq, time = redis.call('HINCRBY', meta, 'seq', 1), redis.call('TIME')[1]
local entry = table.concat({epoch, seq, offset, me, request, time}, ' ') .. '\\n' .. body
redis.call('XADD', stream, 'MAXLEN', '~', most, seq .. '-1', 'm', entry)
redis.call('PUBLISH', channel, entry)
if id ~= '' then redis.call('SET', id, epoch .. ':' .. offset, 'PX', ids) end
return {'done', epoch .. ':' .. offset}";

/// Reads entries of the stream from a place on: so many at most, and no more once they have so many bytes together, but one in any case.
pub const READ: &str = "local all, bytes, from = {}, 0, ARGV[1]
local most, enough = tonumber(ARGV[2]), tonumber(ARGV[3])
while #all < most and bytes < enough do
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then break end
  all[#all + 1] = entry
  bytes = bytes + #entry[2][2]
  from = '(' .. entry[1]
end
return all";
