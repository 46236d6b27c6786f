//! Debian's docker-registry on this machine alone, and a proxy before it in which things go wrong.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// The user of a registry with a password.
pub const USER: &str = "me";
/// Its password.
pub const PASSWORD: &str = "open-sesame";
/// That, as htpasswd keeps it.
const HTPASSWD: &str = "me:$2b$04$sJhBQOcCVIbhrRRa1EX/7ef8Z0oeK2Gx8N/zQvKh.YMV6wJYlfvRy\n";

/// A registry that ends with the test.
pub struct Registry {
    child: Child,
    /// Where it listens.
    pub port: u16,
}

impl Registry {
    /// Starts one that keeps what it is given in this folder; `password`: it wants to know who asks.
    pub fn start(folder: &Path, password: bool) -> Self {
        let kept = folder.join(if password { "registry-with-password" } else { "registry" });
        fs::create_dir_all(&kept).expect("create_dir_all");
        fs::write(kept.join("htpasswd"), HTPASSWD).expect("write");
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", kept.join("htpasswd").display());
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{}",
            kept.join("data").display(),
            if password { &auth } else { "" }
        );
        fs::write(kept.join("config.yml"), config).expect("write");
        let mut child = Command::new(super::needs::find("docker-registry").expect("docker-registry"))
            .arg("serve")
            .arg(kept.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start docker-registry");
        let mut log = BufReader::new(child.stderr.take().expect("stderr"));
        let mut port = None;
        let mut line = String::new();
        while port.is_none() && log.read_line(&mut line).expect("its log") > 0 {
            port = line
                .split_once("listening on 127.0.0.1:")
                .and_then(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok());
            assert!(port.is_some() || line.len() < 100_000, "docker-registry does not listen:\n{line}");
        }
        // Its log must be read, or it stops.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, port: port.unwrap_or_else(|| panic!("docker-registry ended:\n{line}")) }
    }

    /// `docker://127.0.0.1:PORT/NAME`
    pub fn reference(&self, name: &str) -> String {
        format!("docker://127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a proxy does with a request.
pub enum Fate {
    /// Passes it on.
    Passed,
    /// Answers this itself.
    Answered(String),
    /// Passes so many bytes of its body on, and breaks the connection.
    Broken(usize),
}

/// A proxy before a registry: it remembers what was asked, and lets things go wrong.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one; `fate` is told each request's head and how many came before it.
    pub fn start(upstream: u16, fate: impl Fn(&str, usize) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (fate, heads) = (Arc::new(fate), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (fate, heads) = (fate.clone(), heads.clone());
                // A connection that breaks is what this is for.
                std::thread::spawn(move || drop(pass(stream, upstream, &*fate, &heads)));
            }
        });
        Self { port, asked }
    }

    /// The heads of all requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("lock").clone()
    }

    /// `docker://127.0.0.1:PORT/NAME`
    pub fn reference(&self, name: &str) -> String {
        format!("docker://127.0.0.1:{}/{name}", self.port)
    }
}

fn pass(
    client: TcpStream,
    upstream: u16,
    fate: &dyn Fn(&str, usize) -> Fate,
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let before = {
        let mut heads = heads.lock().expect("lock");
        heads.push(head.clone());
        heads.len() - 1
    };
    let mut client = client;
    let passed = match fate(&head, before) {
        Fate::Answered(answer) => {
            std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
            return client.write_all(answer.as_bytes());
        }
        Fate::Broken(bytes) => bytes as u64,
        Fate::Passed => length,
    };
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    server.write_all(head.as_bytes())?;
    server.write_all(b"Connection: close\r\n\r\n")?;
    std::io::copy(&mut (&mut reader).take(passed), &mut server)?;
    if passed < length {
        return Ok(());
    }
    std::io::copy(&mut server, &mut client)?;
    Ok(())
}
