import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.BufferedReader;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.util.concurrent.ForkJoinPool;

/** Serves one page at a port; with "check", asks itself for it once, at a socket of the file system. */
public class Serve {
    public static void main(String[] args) throws Exception {
        if (args[0].equals("check")) {
            check();
            return;
        }
        SocketAddress port = new InetSocketAddress(InetAddress.getLoopbackAddress(), Integer.parseInt(args[0]));
        try (ServerSocketChannel server = ServerSocketChannel.open()) {
            server.bind(port);
            while (true) {
                SocketChannel client = server.accept();
                ForkJoinPool.commonPool().execute(() -> answer(client));
            }
        }
    }

    static void answer(SocketChannel client) {
        try (client) {
            BufferedReader asked = new BufferedReader(Channels.newReader(client, UTF_8));
            String path = asked.readLine().split(" ")[1];
            String line;
            do {
                line = asked.readLine();
            } while (line != null && !line.isEmpty());
            byte[] page = ("Hello from " + path + "\n").getBytes(UTF_8);
            String head = "HTTP/1.0 200 OK\r\nContent-Length: " + page.length + "\r\n\r\n";
            client.write(new ByteBuffer[] {ByteBuffer.wrap(head.getBytes(UTF_8)), ByteBuffer.wrap(page)});
        } catch (Exception wrong) {
            System.err.println(wrong);
        }
    }

    static void check() throws Exception {
        SocketAddress socket = UnixDomainSocketAddress.of(Files.createTempDirectory("serve").resolve("socket"));
        try (ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX)) {
            server.bind(socket);
            try (SocketChannel client = SocketChannel.open(socket)) {
                client.write(ByteBuffer.wrap("GET /java HTTP/1.0\r\n\r\n".getBytes(UTF_8)));
                SocketChannel other = server.accept();
                ForkJoinPool.commonPool().execute(() -> answer(other));
                String answer = new String(Channels.newInputStream(client).readAllBytes(), UTF_8);
                if (!answer.endsWith("\r\n\r\nHello from /java\n")) {
                    throw new Exception("it answered " + answer);
                }
            }
        }
    }
}
