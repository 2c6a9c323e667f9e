// Go's HTTP client against a server: `go run client.go PORT`, over TLS where TRUSTED in the environment names the certificate to trust.
// Prints `ok CASE` or `FAIL CASE: why`, then `end`.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const size = 2_000_000

func main() {
	scheme, transport := "http", &http.Transport{}
	if path := os.Getenv("TRUSTED"); path != "" {
		pem, _ := os.ReadFile(path)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		scheme, transport.TLSClientConfig = "https", &tls.Config{RootCAs: roots}
	}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	url := scheme + "://127.0.0.1:" + os.Args[1]
	ask := func(method, path string, body io.Reader, wanted func([]byte) bool) error {
		request, _ := http.NewRequest(method, url+path, body)
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		came, err := io.ReadAll(answer.Body)
		if err == nil && (answer.StatusCode != 200 || !wanted(came)) {
			err = fmt.Errorf("status %d, %d bytes", answer.StatusCode, len(came))
		}
		return err
	}
	report := func(name string, err error) {
		if err != nil {
			fmt.Printf("FAIL %s: %v\n", name, err)
		} else {
			fmt.Printf("ok %s\n", name)
		}
	}
	sent := make([]byte, size)
	rand.Read(sent)
	same := func(came []byte) bool { return bytes.Equal(came, sent) }
	report("GET", ask("GET", "/ping", nil, func(came []byte) bool { return len(came) > 0 }))
	report("HEAD", ask("HEAD", "/ping", nil, func(came []byte) bool { return len(came) == 0 }))
	report("GET 2 MB", ask("GET", fmt.Sprintf("/bytes?n=%d", size), nil, func(came []byte) bool { return len(came) == size }))
	report("POST 2 MB", ask("POST", "/echo", bytes.NewReader(sent), same))
	report("POST 2 MB chunked", ask("POST", "/echo", io.MultiReader(bytes.NewReader(sent)), same))
	report("stream", ask("GET", "/stream", nil, func(came []byte) bool { return len(came) > 0 }))
	fmt.Println("end")
}
