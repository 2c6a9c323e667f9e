//! The transport: HTTPS to the authority, with our own cryptography, and trusting whom the system trusts unless told otherwise.

use std::path::Path;
use std::time::Duration;

use ureq::config::ConfigBuilder;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;

use super::client::{Failure, Request, Response, Transport};
use crate::http::date;
use crate::tls;

/// How long a request may take with its response.
const PATIENCE: Duration = Duration::from_secs(30);
/// A response has at most so many bytes: a certificate with those of its issuers has a few thousand.
const MOST_BYTES: u64 = 1024 * 1024;
/// See the module.
pub struct Https(ureq::Agent);

impl Https {
    /// Trusts those in a file, or whom the system trusts (`$SSL_CERT_FILE`, else the system's bundle).
    ///
    /// # Errors
    /// When nobody would be trusted.
    pub fn new(ca_file: Option<&Path>) -> Result<Https, Failure> {
        let file = ca_file.map(Path::to_owned).or_else(tls::client::bundle).ok_or_else(|| {
            Failure::new(
                "this system has no bundle of certificates to trust: install ca-certificates, or set acme.ca_file",
            )
        })?;
        let found = tls::authorities(&file).map_err(|failure| Failure::new(failure.to_string()))?;
        let trusted: Vec<_> = found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&trusted))
            .unversioned_rustls_crypto_provider(tls::provider().clone())
            .build();
        Ok(Https(agent().tls_config(tls).https_only(true).build().new_agent()))
    }
}

fn agent() -> ConfigBuilder<AgentScope> {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .user_agent(concat!("production_server/", env!("CARGO_PKG_VERSION")))
}

/// The text that lies at a URL, of at most 1 MiB. Over https nobody but whom the system trusts is asked, and no redirect leads elsewhere.
///
/// # Errors
/// Why it cannot be had, in one line.
pub fn document(url: &str) -> Result<String, String> {
    let is_plain = url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:"));
    let agent =
        if is_plain { agent().build().new_agent() } else { Https::new(None).map_err(|failure| failure.what)?.0 };
    let failed = |error: ureq::Error| error.to_string();
    let mut response =
        agent.get(url).header("Accept", "application/jwk-set+json, application/json").call().map_err(failed)?;
    if response.status() != 200 {
        return Err(format!("it answers {}", response.status()));
    }
    let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_vec().map_err(failed)?;
    String::from_utf8(body).map_err(|_| "it is no text".to_owned())
}

impl Transport for Https {
    fn send(&mut self, request: &Request) -> Result<Response, String> {
        let failed = |error: ureq::Error| format!("{}: {error}", request.url);
        let sent = match request.body {
            Some(body) => self.0.post(request.url).header("Content-Type", "application/jose+json").send(body),
            None => self.0.get(request.url).call(),
        };
        let mut response = sent.map_err(failed)?;
        let field = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.trim().to_owned());
        let (nonce, location) = (field("Replay-Nonce"), field("Location"));
        let retry_after = field("Retry-After").and_then(|text| retry_after(&text, tls::now()));
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_vec().map_err(failed)?;
        Ok(Response { status, nonce, location, retry_after, body })
    }
}

/// The seconds that a `Retry-After` says, or that are left until the date which it says (RFC 9110, 10.2.3).
fn retry_after(text: &str, now: i64) -> Option<i64> {
    let at = || date::parse_date(text.as_bytes()).and_then(|at| i64::try_from(at).ok());
    text.parse().ok().or_else(|| at().map(|at| at.saturating_sub(now).max(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_waited_for_is_said_in_seconds_or_as_a_date() {
        let now = 784_111_777;
        for (text, seconds) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 10:49:37 GMT", Some(7200)),
            ("Sun, 06 Nov 1994 06:49:37 GMT", Some(0)),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now), seconds, "{text}");
        }
    }
}
