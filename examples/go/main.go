// A Go app without dependencies.
//
//	go build -o /tmp/go-app ./examples/go/main.go
//	production_server -c 64 -- /tmp/go-app
//
// The server gives the path of a Unix socket as SOCKET_PATH; alone the app takes port 3000. -c 64 lets 64 requests run in each
// worker at once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	http.HandleFunc("/", hello)
	http.HandleFunc("/echo", echo)
	http.HandleFunc("/slow", slow)

	network, place := "tcp", "127.0.0.1:3000"
	if path := os.Getenv("SOCKET_PATH"); path != "" {
		network, place = "unix", path
	}
	listener, err := net.Listen(network, place)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second}

	// On SIGTERM the requests in flight are answered before the process leaves; without this they would be cut.
	stop, done := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer done()
	finished := make(chan error, 1)
	go func() {
		<-stop.Done()
		finished <- server.Shutdown(context.Background())
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	if err := <-finished; err != nil {
		log.Fatal(err)
	}
}

func hello(answer http.ResponseWriter, request *http.Request) {
	if request.URL.Path != "/" {
		http.NotFound(answer, request)
		return
	}
	fmt.Fprintf(answer, "Hello from worker %s, process %d\n", os.Getenv("WORKER_ID"), os.Getpid())
}

func echo(answer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(answer, request.Body, 64<<20))
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	kind := request.Header.Get("Content-Type")
	if kind == "" {
		kind = "application/octet-stream"
	}
	answer.Header().Set("Content-Type", kind)
	answer.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = answer.Write(body)
}

func slow(answer http.ResponseWriter, request *http.Request) {
	pause, err := strconv.Atoi(request.URL.Query().Get("ms"))
	if err != nil || pause < 0 {
		pause = 100
	}
	pause = min(pause, 60000)
	time.Sleep(time.Duration(pause) * time.Millisecond)
	fmt.Fprintf(answer, "slept %d ms\n", pause)
}

// min is a built-in function from Go 1.21 on; Debian has an older one.
func min(left, right int) int {
	if left < right {
		return left
	}
	return right
}
