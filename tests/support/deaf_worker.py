# A worker that lives on without its listener when it is told `close`; the file of its socket stays.
import os, socket, time

listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["SOCKET_PATH"])
listener.listen(16)
while listener.accept()[0].recv(16) != b"close":
    pass
listener.close()
while True:
    time.sleep(60)
