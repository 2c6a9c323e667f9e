//! The client's side of ACME (RFC 8555) above a transport that sends and receives: an account, orders, and what the authority suggests for
//! renewals (RFC 9773). What else must happen meanwhile, and what may not, the [`Host`] knows.

use std::time::Duration;

use serde_json::{Value, json};

use super::key::{AccountKey, base64};
use crate::config::Challenge;

/// How often one request is sent again because its nonce was refused (RFC 8555, 6.5): authorities for tests refuse nine of ten.
const NONCES: usize = 100;
/// How often an order or an authorization is looked at until it has come to its end.
const LOOKS: usize = 60;

/// A request that is to be sent.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where to.
    pub url: &'a str,
    /// A JWS that is posted; `None`: nothing is sent but the request for the document.
    pub body: Option<&'a str>,
}

/// What has come back.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// `Replay-Nonce`.
    pub nonce: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<i64>,
    /// The body.
    pub body: Vec<u8>,
}

/// Who sends requests.
pub trait Transport {
    /// Sends a request and waits for the response, whatever its status.
    ///
    /// # Errors
    /// Why there is none, in one line.
    fn send(&mut self, request: &Request) -> Result<Response, String>;
}

/// Why something was not done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// What was wrong, in one line.
    pub what: String,
    /// The type of the authority's problem document without `urn:ietf:params:acme:error:`; may be empty.
    pub kind: String,
    /// The status of the authority's response; 0: there was none, or it was no error.
    pub status: u16,
    /// For so many seconds the authority wants to hear of nothing more.
    pub retry_after: Option<i64>,
}

impl Failure {
    /// A failure without a problem document.
    pub fn new(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), ..Failure::default() }
    }

    /// Whether the authority says that the account may do nothing: a deactivated one is not authorized, whatever it asks for.
    pub fn is_of_the_account(&self) -> bool {
        ["accountDoesNotExist", "unauthorized"].contains(&self.kind.as_str())
    }

    /// Whether what was asked for is not there, or not for this account, and never will be.
    fn is_for_good(&self) -> bool {
        [404, 410].contains(&self.status) || self.kind == "malformed" || self.is_of_the_account()
    }

    /// Whether the authority has refused what it was asked for, and not only for now.
    fn is_refusal(&self) -> bool {
        (400..500).contains(&self.status) && self.status != 429 && self.kind != "rateLimited"
    }
}

/// What an order needs besides the authority. Each call may refuse, and then the attempt ends.
pub trait Host {
    /// Waits.
    ///
    /// # Errors
    /// When the server stops.
    fn wait(&mut self, time: Duration) -> Result<(), Failure>;
    /// A validation is about to begin: shows the answer to its challenge.
    ///
    /// # Errors
    /// When brakes forbid it.
    fn validation_begins(&mut self, name: &str, token: &str, authorization: &str) -> Result<(), Failure>;
    /// It has ended: nothing is shown any more.
    fn validation_ends(&mut self, name: &str, token: &str, succeeded: bool);
    /// A certificate for that key (PKCS#8 in PEM) is about to be demanded in the order at that URL.
    ///
    /// # Errors
    /// When brakes forbid it.
    fn order_begins(&mut self, url: &str, key: &str) -> Result<(), Failure>;
    /// The authority issues nothing for the key of the order that began last.
    fn key_refused(&mut self);
}

/// What an order is for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// DNS names.
    pub names: &'a [String],
    /// The authority's name of a kind of certificate.
    pub profile: Option<&'a str>,
    /// What the authority knows the certificate by that it replaces (RFC 9773, 4.1).
    pub replaces: Option<&'a str>,
    /// How the names are proven.
    pub challenge: Challenge,
}

/// A certificate and its key, both in PEM.
#[derive(Clone, Debug)]
pub struct Obtained {
    /// The certificate and those of its issuers.
    pub chain: String,
    /// The key.
    pub key: String,
}

/// Who asks for an account.
#[derive(Debug)]
pub struct Applicant<'a> {
    /// Whom the authority writes to; given, it says that its terms are accepted.
    pub email: &'a str,
    /// An account elsewhere that this one is bound to: its name, and its key in base64url (RFC 8555, 7.3.4).
    pub external: Option<(&'a str, &'a str)>,
}

/// See the module.
pub struct Client<T> {
    transport: T,
    directory: Value,
    key: AccountKey,
    account: Option<String>,
    nonce: Option<String>,
}

impl<T: Transport> Client<T> {
    /// Reads the directory at a URL. `account` is the URL of the account that has that key, if it is known.
    ///
    /// # Errors
    /// When there is no directory.
    pub fn new(mut transport: T, url: &str, key: AccountKey, account: Option<String>) -> Result<Client<T>, Failure> {
        let response = transport.send(&Request { url, body: None }).map_err(Failure::new)?;
        let directory = document(url, &response)?;
        for name in ["newNonce", "newAccount", "newOrder"] {
            if directory[name].as_str().is_none() {
                return Err(Failure::new(format!("{url}: this is no ACME directory: there is no {name} in it")));
            }
        }
        Ok(Client { transport, directory, key, account, nonce: None })
    }

    /// Makes sure that there is an account; its URL.
    ///
    /// # Errors
    /// When the authority refuses one.
    pub fn account(&mut self, applicant: &Applicant) -> Result<String, Failure> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let url = self.endpoint("newAccount")?;
        let mut payload = json!({ "termsOfServiceAgreed": true, "contact": contact(applicant.email) });
        if let Some((name, secret)) = applicant.external {
            payload["externalAccountBinding"] = self
                .key
                .bind(&url, name, secret)
                .ok_or_else(|| Failure::new("the key of the external account is no base64url"))?;
        } else if self.directory["meta"]["externalAccountRequired"] == true {
            let what = "the authority wants an account with it (external account binding): set acme.eab.kid and acme.eab.key_file";
            return Err(Failure::new(what));
        }
        let response = self.post(&url, Some(&payload))?;
        let account =
            response.location.ok_or_else(|| Failure::new("the authority does not say where the account is"))?;
        self.account = Some(account.clone());
        Ok(account)
    }

    /// Tells the authority whom it is to write to from now on (RFC 8555, 7.3.2), where there is an account.
    ///
    /// # Errors
    /// When the authority refuses.
    pub fn change_contact(&mut self, email: &str) -> Result<(), Failure> {
        let Some(account) = self.account.clone() else { return Ok(()) };
        self.post(&account, Some(&json!({ "contact": contact(email) }))).map(drop)
    }

    /// Orders a certificate and waits for it.
    ///
    /// # Errors
    /// When the authority or the host refuses.
    pub fn order(&mut self, wanted: &Wanted, host: &mut dyn Host) -> Result<Obtained, Failure> {
        let url = self.endpoint("newOrder")?;
        let identifiers: Vec<Value> = wanted.names.iter().map(|name| json!({ "type": "dns", "value": name })).collect();
        let mut payload = json!({ "identifiers": identifiers });
        if let Some(profile) = wanted.profile {
            payload["profile"] = profile.into();
        }
        let replacing = wanted.replaces.filter(|_| self.suggests()).map(|replaces| {
            let mut payload = payload.clone();
            payload["replaces"] = replaces.into();
            self.post(&url, Some(&payload))
        });
        // It may be that certificate which is refused, as one that another account has ordered (RFC 9773, 5), and in any words: only what is
        // said of an order that replaces none is said of the account.
        let response = match replacing {
            Some(Err(failure)) if failure.is_refusal() => self.post(&url, Some(&payload))?,
            Some(response) => response?,
            None => self.post(&url, Some(&payload))?,
        };
        let order_url =
            response.location.clone().ok_or_else(|| Failure::new("the authority does not say where the order is"))?;
        let order = document(&url, &response)?;
        // One after the other: where the first fails, the others are not tried, and count as nothing.
        for authorization in order["authorizations"].as_array().into_iter().flatten() {
            self.authorize(authorization.as_str().unwrap_or_default(), wanted.challenge, host)?;
        }
        let order = self.settled(&order_url, &["pending"], host)?;
        if order["status"] == "invalid" {
            return Err(problem_of(&order["error"], "the order has failed"));
        }
        let key = rcgen::KeyPair::generate().map_err(|error| Failure::new(format!("no key can be made: {error}")))?;
        host.order_begins(&order_url, &key.serialize_pem())?;
        self.finalize(&order_url, &order, wanted.names, &key, host)
    }

    /// Goes on with an order that was begun before with that key; `None`: nothing can be made of it any more.
    ///
    /// # Errors
    /// When the authority refuses, or was not reached. The order may still be there.
    pub fn resume(
        &mut self,
        url: &str,
        key: &str,
        names: &[String],
        host: &mut dyn Host,
    ) -> Result<Option<Obtained>, Failure> {
        let Ok(key) = rcgen::KeyPair::from_pem(key) else { return Ok(None) };
        let order = match self.post(url, None) {
            Ok(response) => document(url, &response)?,
            Err(failure) if failure.is_for_good() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        match order["status"].as_str() {
            Some("ready" | "processing" | "valid") => self.finalize(url, &order, names, &key, host).map(Some),
            _ => Ok(None),
        }
    }

    fn finalize(
        &mut self,
        url: &str,
        order: &Value,
        names: &[String],
        key: &rcgen::KeyPair,
        host: &mut dyn Host,
    ) -> Result<Obtained, Failure> {
        if order["status"] == "ready" {
            let request = rcgen::CertificateParams::new(names).map(|mut params| {
                params.distinguished_name = rcgen::DistinguishedName::new();
                params.serialize_request(key)
            });
            let request = request
                .and_then(|made| made)
                .map_err(|error| Failure::new(format!("no request can be made: {error}")))?;
            let finalize = order["finalize"].as_str().unwrap_or_default();
            self.post(finalize, Some(&json!({ "csr": base64(request.der()) }))).inspect_err(|failure| {
                // The order stays, and so would the answer to that key.
                if ["badCSR", "badPublicKey"].contains(&failure.kind.as_str()) {
                    host.key_refused();
                }
            })?;
        }
        let order = self.settled(url, &["ready", "processing"], host)?;
        let Some(certificate) = order["certificate"].as_str().filter(|_| order["status"] == "valid") else {
            return Err(problem_of(&order["error"], "the order has failed"));
        };
        let chain = String::from_utf8(self.post(certificate, None)?.body);
        let chain = chain.map_err(|_| Failure::new(format!("{certificate}: this is no certificate in PEM")))?;
        Ok(Obtained { chain, key: key.serialize_pem() })
    }

    fn authorize(&mut self, url: &str, kind: Challenge, host: &mut dyn Host) -> Result<(), Failure> {
        let authorization = document(url, &self.post(url, None)?)?;
        if authorization["status"] == "valid" {
            return Ok(());
        }
        let name = authorization["identifier"]["value"].as_str().unwrap_or_default().to_owned();
        let offered = authorization["challenges"].as_array().into_iter().flatten();
        let challenge = offered.clone().find(|challenge| challenge["type"] == kind.word());
        let (Some(token), Some(answer)) = (
            challenge.and_then(|challenge| challenge["token"].as_str()),
            challenge.and_then(|challenge| challenge["url"].as_str()),
        ) else {
            let all: Vec<&str> = offered.filter_map(|challenge| challenge["type"].as_str()).collect();
            return Err(Failure::new(format!(
                "{name}: the authority offers {} and not {}",
                all.join(", "),
                kind.word()
            )));
        };
        let shown = format!("{token}.{}", self.key.thumbprint());
        host.validation_begins(&name, token, &shown)?;
        let outcome =
            self.post(answer, Some(&json!({}))).and_then(|_| self.settled(url, &["pending", "processing"], host));
        let succeeded = matches!(&outcome, Ok(authorization) if authorization["status"] == "valid");
        host.validation_ends(&name, token, succeeded);
        let authorization = outcome?;
        if succeeded {
            return Ok(());
        }
        let of_challenge = authorization["challenges"].as_array().into_iter().flatten().map(|one| &one["error"]);
        let error = of_challenge.clone().find(|error| !error.is_null()).unwrap_or(&Value::Null);
        Err(problem_of(error, &format!("{name}: the authority has not validated it by {}", kind.word())))
    }

    /// Looks at a document until its status is another than those.
    fn settled(&mut self, url: &str, passing: &[&str], host: &mut dyn Host) -> Result<Value, Failure> {
        for look in 0..LOOKS {
            let response = self.post(url, None)?;
            let found = document(url, &response)?;
            if !passing.iter().any(|status| found["status"] == *status) {
                return Ok(found);
            }
            let seconds = response.retry_after.unwrap_or(1 + look as i64 / 4).clamp(1, 30);
            host.wait(Duration::from_secs(seconds as u64))?;
        }
        Err(Failure::new(format!("{url}: it has not come to an end in time")))
    }

    /// Whether the authority suggests when certificates are to be renewed.
    pub fn suggests(&self) -> bool {
        self.directory["renewalInfo"].is_string()
    }

    /// When the authority suggests to renew the certificate that it knows by that name, and in how many seconds to ask again.
    ///
    /// # Errors
    /// When it says nothing of it.
    pub fn renewal(&mut self, certificate: &str) -> Result<((i64, i64), Option<i64>), Failure> {
        let url = format!("{}/{certificate}", self.endpoint("renewalInfo")?.trim_end_matches('/'));
        let response = self.transport.send(&Request { url: &url, body: None }).map_err(Failure::new)?;
        let found = document(&url, &response)?;
        let time = |name: &str| found["suggestedWindow"][name].as_str().and_then(crate::tls::seconds);
        let window = time("start").zip(time("end"));
        let window = window.ok_or_else(|| Failure::new(format!("{url}: there is no window in it that can be read")))?;
        Ok((window, response.retry_after))
    }

    fn endpoint(&self, name: &str) -> Result<String, Failure> {
        let found = self.directory[name].as_str().map(str::to_owned);
        found.ok_or_else(|| Failure::new(format!("there is no {name} in the authority's directory")))
    }

    /// Posts what is signed by the account, or by its key while there is none; without a payload it asks for the document.
    fn post(&mut self, url: &str, payload: Option<&Value>) -> Result<Response, Failure> {
        let payload = payload.map_or_else(String::new, Value::to_string);
        let mut failure = Failure::default();
        for _ in 0..NONCES {
            let nonce = match self.nonce.take() {
                Some(nonce) => nonce,
                None => self.fresh_nonce()?,
            };
            let body = self.key.sign(url, &nonce, self.account.as_deref(), &payload);
            let body = body.ok_or_else(|| Failure::new("the key of the account cannot sign"))?;
            let response = self.transport.send(&Request { url, body: Some(&body) }).map_err(Failure::new)?;
            self.nonce.clone_from(&response.nonce);
            if response.status < 400 {
                return Ok(response);
            }
            failure = problem(url, &response);
            if failure.kind != "badNonce" {
                break;
            }
        }
        Err(failure)
    }

    fn fresh_nonce(&mut self) -> Result<String, Failure> {
        let url = self.endpoint("newNonce")?;
        let response = self.transport.send(&Request { url: &url, body: None }).map_err(Failure::new)?;
        response.nonce.ok_or_else(|| Failure::new(format!("{url}: there is no nonce in the response")))
    }
}

fn document(url: &str, response: &Response) -> Result<Value, Failure> {
    if response.status >= 400 {
        return Err(problem(url, response));
    }
    serde_json::from_slice(&response.body)
        .map_err(|error| Failure::new(format!("{url}: the document cannot be read: {error}")))
}

/// A response that is an error, as its problem document says (RFC 7807).
fn problem(url: &str, response: &Response) -> Failure {
    let found: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let failure = problem_of(&found, &format!("{url}: status {}", response.status));
    let (status, retry_after) = (response.status, response.retry_after);
    Failure { kind: kind_of(&found).to_owned(), status, retry_after, ..failure }
}

fn contact(email: &str) -> Value {
    json!([format!("mailto:{email}")])
}

fn kind_of(found: &Value) -> &str {
    let kind = found["type"].as_str().unwrap_or_default();
    kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind)
}

/// What a problem document says, of a response or inside of an order or a challenge.
fn problem_of(found: &Value, what: &str) -> Failure {
    let kind = kind_of(found);
    let detail = found["detail"].as_str().unwrap_or_default();
    // It is another's text, and ends in a log line.
    let text: String =
        [what, kind, detail].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(": ");
    let what: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(400).collect();
    Failure::new(what)
}

#[cfg(test)]
mod tests;
