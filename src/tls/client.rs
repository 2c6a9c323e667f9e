//! A client's session: what this server speaks to others that it is connected to. Bytes in, bytes out.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::{authorities, provider};

/// Where systems keep those whom they trust: Debian, Fedora, Alpine and the BSDs.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

/// The file of those whom the system trusts: `$SSL_CERT_FILE`, else the system's bundle, if there is one.
pub fn bundle() -> Option<PathBuf> {
    let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    own.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()))
}

/// A session with a server.
#[derive(Debug)]
pub struct Client(ClientConnection);

impl Client {
    /// With the server of that name or address, as whom it has to show itself by an authority of that file, or one that the system trusts.
    ///
    /// # Errors
    /// When nobody would be trusted, or that is no name.
    pub fn new(host: &str, ca_file: Option<&Path>) -> Result<Client, String> {
        let file = ca_file.map(Path::to_owned).or_else(bundle);
        let file = file
            .ok_or("this system has no bundle of certificates to trust: install ca-certificates, or say a ca_file")?;
        let mut roots = RootCertStore::empty();
        let found = authorities(&file).map_err(|failure| failure.to_string())?;
        roots.add_parsable_certificates(found.into_iter().map(CertificateDer::from));
        let config = ClientConfig::builder_with_provider(provider().clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} is no name of a server"))?;
        let mut session = ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
        session.set_buffer_limit(None);
        Ok(Client(session))
    }

    /// Takes records apart: puts what they say behind `plain`.
    ///
    /// # Errors
    /// When the server is not who it should be, or breaks the protocol.
    pub fn open(&mut self, mut records: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        while !records.is_empty() {
            // From a slice: it cannot fail but for a session that takes no more.
            if self.0.read_tls(&mut records).map_err(|error| error.to_string())? == 0 {
                break;
            }
            let state = self.0.process_new_packets().map_err(|error| error.to_string())?;
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            self.0.reader().read_exact(&mut plain[start..]).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Makes records of plain bytes, and puts behind `records` all that is to be sent.
    pub fn seal(&mut self, plain: &[u8], records: &mut Vec<u8>) {
        // Neither can fail: what is written to lies in memory.
        self.0.writer().write_all(plain).ok();
        while self.0.wants_write() && self.0.write_tls(records).is_ok() {}
    }
}
