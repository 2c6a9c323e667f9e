# frozen_string_literal: true

# A Rack app without dependencies, for Puma.
#
#     gem install puma rack        # or, on Debian: apt-get install puma
#     production_server -c 4 -- puma -t 4:4 -b unix://{socket} examples/puma/config.ru
#
# `-c 4` gives each worker as many requests as it has threads. The server does the restarting, so Puma gets no `-w` of its own. It
# handles TERM itself.

text = { 'content-type' => 'text/plain' }

run(lambda do |env|
  case env['PATH_INFO']
  when '/'
    [200, text, ["Hello from worker #{ENV.fetch('WORKER_ID', '0')}, process #{Process.pid}\n"]]
  when '/echo'
    body = env['rack.input'].read
    type = env['CONTENT_TYPE'] || 'application/octet-stream'
    [200, { 'content-type' => type, 'content-length' => body.bytesize.to_s }, [body]]
  when '/slow'
    asked = env['QUERY_STRING'][/(?:^|&)ms=(\d+)/, 1]
    pause = [asked ? asked.to_i : 100, 60_000].min
    sleep(pause / 1000.0)
    [200, text, ["slept #{pause} ms\n"]]
  else
    [404, text, ["not found\n"]]
  end
end)
