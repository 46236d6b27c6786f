import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URL;

/** Serves one page; with "check", asks itself for it once. */
public class Serve {
    public static void main(String[] args) throws Exception {
        boolean check = args[0].equals("check");
        int port = check ? 0 : Integer.parseInt(args[0]);
        HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
        server.createContext("/", exchange -> {
            byte[] body = ("Hello from " + exchange.getRequestURI() + "\n").getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
        if (check) {
            URL url = new URL("http", "127.0.0.1", server.getAddress().getPort(), "/java");
            String answer = new String(url.openStream().readAllBytes());
            server.stop(0);
            if (!answer.equals("Hello from /java\n")) {
                throw new Exception("it answered " + answer);
            }
        }
    }
}
