// Java's HTTP client against a server: `java Client.java PORT`, over TLS where TRUSTED in the environment names the certificate to trust.
// Prints `ok CASE` or `FAIL CASE: why`, then `end`.

import java.io.ByteArrayInputStream;
import java.io.FileInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.Arrays;
import java.util.Random;
import java.util.function.Predicate;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Client {
    static final int SIZE = 2_000_000;
    static HttpClient client;
    static String url;

    public static void main(String[] words) throws Exception {
        String trusted = System.getenv("TRUSTED");
        HttpClient.Builder builder = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).connectTimeout(Duration.ofSeconds(20));
        if (trusted != null) builder.sslContext(trusting(trusted));
        client = builder.build();
        url = (trusted != null ? "https" : "http") + "://127.0.0.1:" + words[0];
        byte[] sent = new byte[SIZE];
        new Random().nextBytes(sent);
        ask("GET", "GET", "/ping", BodyPublishers.noBody(), came -> came.length > 0);
        ask("HEAD", "HEAD", "/ping", BodyPublishers.noBody(), came -> came.length == 0);
        ask("GET 2 MB", "GET", "/bytes?n=" + SIZE, BodyPublishers.noBody(), came -> came.length == SIZE);
        ask("POST 2 MB", "POST", "/echo", BodyPublishers.ofByteArray(sent), came -> Arrays.equals(came, sent));
        ask("POST 2 MB chunked", "POST", "/echo", BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(sent)), came -> Arrays.equals(came, sent));
        ask("stream", "GET", "/stream", BodyPublishers.noBody(), came -> came.length > 0);
        System.out.println("end");
        System.exit(0);
    }

    static void ask(String name, String method, String path, BodyPublisher body, Predicate<byte[]> wanted) {
        try {
            var request = HttpRequest.newBuilder(URI.create(url + path)).timeout(Duration.ofSeconds(20)).method(method, body).build();
            var answer = client.send(request, BodyHandlers.ofByteArray());
            boolean good = answer.statusCode() == 200 && wanted.test(answer.body());
            System.out.println(good ? "ok " + name : "FAIL " + name + ": status " + answer.statusCode() + ", " + answer.body().length + " bytes");
        } catch (Exception error) {
            System.out.println("FAIL " + name + ": " + error);
        }
    }

    static SSLContext trusting(String path) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (var file = new FileInputStream(path)) {
            store.setCertificateEntry("server", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        var managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        return context;
    }
}
