-- wrk: a different user for each request, out of 10,000, so that every user is seen.
local threads = 0
function setup(thread)
  thread:set("first", threads)
  threads = threads + 1
end
function init(args)
  at = first * 5003
end
function request()
  at = (at + 1) % 10000
  return wrk.format("GET", "/", { ["x-user-id"] = "user-" .. at })
end
function response(status, headers, body)
  if status ~= 200 then bad = (bad or 0) + 1 end
end
