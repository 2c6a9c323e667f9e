//! Who listens on an address, as /proc tells (proc_net(5)). Elsewhere than on Linux, and for processes of others, nobody is known.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// The state of a listening socket in /proc/net/tcp (TCP_LISTEN in the kernel's tcp_states.h).
const TCP_LISTEN: &str = "0A";
/// The flag of a listening socket in /proc/net/unix (__SO_ACCEPTCON).
const UNIX_LISTENING: u32 = 0x10000;

/// A process that holds a socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// The name of its program.
    pub name: String,
}

impl Holder {
    /// Whether it is another server of this kind. The kernel keeps the first 15 bytes of a name.
    pub fn is_ours(&self) -> bool {
        "production_server".starts_with(&self.name) && self.name.len() >= 15
    }
}

/// Who listens on that port, whatever the interface.
pub fn of_tcp(address: SocketAddr) -> Option<Holder> {
    let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default());
    let inodes: Vec<String> =
        tables.iter().flat_map(|table| table.lines()).filter_map(|line| tcp(line, address.port())).collect();
    holding(&inodes)
}

/// Who listens on the Unix socket at that path.
pub fn of_unix(path: &Path) -> Option<Holder> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let inodes: Vec<String> = table.lines().filter_map(|line| unix(line, &path)).collect();
    holding(&inodes)
}

/// The inode in a line of /proc/net/tcp: `sl local remote st tx:rx tr:when retrnsmt uid timeout inode …`.
fn tcp(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let listens = u16::from_str_radix(local, 16) == Ok(port) && *fields.get(3)? == TCP_LISTEN;
    fields.get(9).filter(|_| listens).map(|inode| (*inode).to_owned())
}

/// The inode in a line of /proc/net/unix: `num refcount protocol flags type st inode path`.
fn unix(line: &str, path: &Path) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let listens = u32::from_str_radix(fields.get(3)?, 16).ok()? & UNIX_LISTENING != 0;
    let here = Path::new(fields.get(7)?) == path;
    fields.get(6).filter(|_| listens && here).map(|inode| (*inode).to_owned())
}

/// The first process, by number, that has one of those sockets open.
fn holding(inodes: &[String]) -> Option<Holder> {
    if inodes.is_empty() {
        return None;
    }
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut processes: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    processes.sort_unstable();
    let holds = |process: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| target.to_str().is_some_and(|target| links.iter().any(|link| link == target)))
    };
    let process = processes.into_iter().find(holds)?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    // Whoever named it may have put anything there.
    let name = name.trim_end().chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect();
    Some(Holder { process, name })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_found_by_what_it_listens_on() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of_tcp(tcp.local_addr().unwrap()).unwrap();
        assert_eq!(holder.process, std::process::id());
        assert!(!holder.name.is_empty());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _unix = UnixListener::bind(&path).unwrap();
        assert_eq!(of_unix(&path).map(|holder| holder.process), Some(std::process::id()));
        assert_eq!(of_unix(&folder.path().join("nothing")), None);
    }

    #[test]
    fn names_as_the_kernel_keeps_them_are_known() {
        let named = |name: &str| Holder { process: 1, name: name.to_owned() }.is_ours();
        assert!(named("production_serv") && named("production_server"));
        assert!(!named("prod") && !named("nginx") && !named(""));
    }
}
