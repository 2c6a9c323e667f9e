//! The client before an authority that is a function: what it is asked, and what it answers when things go otherwise than well. Whether the
//! protocol is right as a whole, `tests/scripts/acme.py` shows with an authority that others have written.

use std::cell::RefCell;
use std::rc::Rc;

use ::base64::Engine;
use ::base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

/// What was posted: where, the protected header, the payload.
type Posted = (String, Value, Value);

#[derive(Default)]
struct Authority {
    posted: Vec<Posted>,
    /// So many of the next nonces are refused.
    refused: usize,
    /// Problems, each for the next request to a URL that ends so.
    problems: Vec<(&'static str, &'static str)>,
    /// Names whose validation fails.
    invalid: Vec<&'static str>,
    finalized: bool,
    eab: bool,
    window: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Default)]
struct Fake(Rc<RefCell<Authority>>);

fn answer(status: u16, body: Value) -> Response {
    let body = body.to_string().into_bytes();
    Response { status, nonce: Some("next".to_owned()), location: None, retry_after: Some(0), body }
}

fn problem_document(kind: &str) -> Value {
    json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": format!("because of\n{kind}") })
}

impl Transport for Fake {
    fn send(&mut self, request: &Request) -> Result<Response, String> {
        let mut authority = self.0.borrow_mut();
        let path = request.url.strip_prefix("https://ca").ok_or("no such host")?;
        let mut payload = Value::Null;
        if let Some(body) = request.body {
            let jws: Value = serde_json::from_str(body).unwrap();
            let part = |name: &str| URL_SAFE_NO_PAD.decode(jws[name].as_str().unwrap()).unwrap();
            payload = serde_json::from_slice(&part("payload")).unwrap_or_default();
            let protected: Value = serde_json::from_slice(&part("protected")).unwrap();
            assert_eq!(protected["url"], request.url);
            if authority.refused > 0 {
                authority.refused -= 1;
                return Ok(answer(400, problem_document("badNonce")));
            }
            authority.posted.push((path.to_owned(), protected, payload.clone()));
        }
        if let Some(index) = authority.problems.iter().position(|(end, _)| path.ends_with(end)) {
            let (_, kind) = authority.problems.remove(index);
            let status = match kind {
                "rateLimited" => 429,
                "serverInternal" => 500,
                "unauthorized" => 403,
                _ => 400,
            };
            return Ok(answer(status, problem_document(kind)));
        }
        Ok(authority.answer(path, &payload))
    }
}

impl Authority {
    fn answer(&mut self, path: &str, payload: &Value) -> Response {
        let status = |done: bool| if done { "valid" } else { "pending" };
        let order = json!({
            "status": if self.finalized { "valid" } else { "ready" }, "finalize": "https://ca/finalize", "certificate": "https://ca/cert",
            "authorizations": ["https://ca/authz/a.example", "https://ca/authz/b.example"],
        });
        match path {
            "/dir" => {
                let mut directory = json!({
                    "newNonce": "https://ca/nonce", "newAccount": "https://ca/account", "newOrder": "https://ca/new-order",
                    "meta": { "externalAccountRequired": self.eab },
                });
                if self.window.is_some() {
                    directory["renewalInfo"] = "https://ca/ari/".into();
                }
                answer(200, directory)
            }
            "/nonce" => Response { status: 204, nonce: Some("first".to_owned()), ..Response::default() },
            "/account/1" => answer(200, json!({})),
            "/account" => Response { location: Some("https://ca/account/1".to_owned()), ..answer(201, json!({})) },
            "/new-order" => Response { location: Some("https://ca/order/1".to_owned()), ..answer(201, order) },
            "/order/1" => answer(200, order),
            "/finalize" => {
                self.finalized = payload["csr"].is_string();
                answer(200, order)
            }
            "/cert" => Response { body: b"CHAIN".to_vec(), ..answer(200, Value::Null) },
            _ if path.starts_with("/challenge/") => answer(200, json!({})),
            _ if path.starts_with("/ari/") => {
                let (start, end) = self.window.unwrap();
                Response {
                    retry_after: Some(21_600),
                    ..answer(200, json!({ "suggestedWindow": { "start": start, "end": end } }))
                }
            }
            _ => {
                let name = path.strip_prefix("/authz/").unwrap();
                let tried = self.posted.iter().any(|(path, _, _)| *path == format!("/challenge/{name}"));
                let fails = tried && self.invalid.contains(&name);
                let error = if fails { problem_document("unauthorized") } else { Value::Null };
                answer(
                    200,
                    json!({
                        "status": if fails { "invalid" } else { status(tried) }, "identifier": { "type": "dns", "value": name },
                        "challenges": [
                            { "type": "dns-01", "url": "https://ca/no", "token": "no" },
                            { "type": "http-01", "url": format!("https://ca/challenge/{name}"), "token": format!("token-{name}"), "error": error },
                        ],
                    }),
                )
            }
        }
    }
}

#[derive(Default)]
struct Witness {
    calls: Vec<String>,
    refuses_order: bool,
    refused_keys: usize,
}

impl Host for Witness {
    fn wait(&mut self, _: Duration) -> Result<(), Failure> {
        Ok(())
    }

    fn validation_begins(&mut self, name: &str, token: &str, authorization: &str) -> Result<(), Failure> {
        assert!(authorization.starts_with(&format!("{token}.")));
        self.calls.push(format!("begin {name}"));
        Ok(())
    }

    fn validation_ends(&mut self, name: &str, _: &str, succeeded: bool) {
        self.calls.push(format!("end {name} {succeeded}"));
    }

    fn order_begins(&mut self, url: &str, key: &str) -> Result<(), Failure> {
        assert!(key.contains("PRIVATE KEY"));
        self.calls.push(format!("order {url}"));
        if self.refuses_order { Err(Failure::new("brakes")) } else { Ok(()) }
    }

    fn key_refused(&mut self) {
        self.refused_keys += 1;
    }
}

fn client(fake: &Fake) -> Client<Fake> {
    Client::new(fake.clone(), "https://ca/dir", AccountKey::generate().unwrap(), None).unwrap()
}

const APPLICANT: Applicant = Applicant { email: "you@example.org", external: None };

fn names() -> Vec<String> {
    ["a.example", "b.example"].map(str::to_owned).to_vec()
}

fn wanted(names: &[String]) -> Wanted<'_> {
    Wanted { names, profile: Some("shortlived"), replaces: Some("aki.serial"), challenge: Challenge::Http01 }
}

#[test]
fn a_certificate_is_ordered_although_nonces_are_refused() {
    let fake = Fake::default();
    fake.0.borrow_mut().refused = 20;
    let mut client = client(&fake);
    assert_eq!(client.account(&APPLICANT).unwrap(), "https://ca/account/1");
    let mut host = Witness::default();
    let obtained = client.order(&wanted(&names()), &mut host).unwrap();
    assert_eq!(obtained.chain, "CHAIN");
    let calls =
        ["begin a.example", "end a.example true", "begin b.example", "end b.example true", "order https://ca/order/1"];
    assert_eq!(host.calls, calls);
    let authority = fake.0.borrow();
    let (path, protected, payload) = &authority.posted[0];
    assert_eq!((path.as_str(), &payload["contact"][0]), ("/account", &"mailto:you@example.org".into()));
    assert!(protected["jwk"].is_object() && payload["termsOfServiceAgreed"] == true);
    assert!(authority.posted[1..].iter().all(|(_, protected, _)| protected["kid"] == "https://ca/account/1"));
    let (path, _, payload) = &authority.posted[1];
    assert_eq!((path.as_str(), &payload["profile"]), ("/new-order", &"shortlived".into()));
    assert!(payload["replaces"].is_null(), "an authority without renewal information knows nothing of it");
    assert_eq!(payload["identifiers"][1], json!({ "type": "dns", "value": "b.example" }));
}

#[test]
fn the_first_validation_that_fails_is_the_last() {
    let fake = Fake::default();
    fake.0.borrow_mut().invalid = vec!["a.example"];
    let mut client = client(&fake);
    client.account(&APPLICANT).unwrap();
    let mut host = Witness::default();
    let failure = client.order(&wanted(&names()), &mut host).unwrap_err();
    assert!(
        failure.what.contains("a.example") && failure.what.ends_with("because of unauthorized"),
        "{}",
        failure.what
    );
    assert_eq!(failure.kind, "", "it says nothing of the account");
    assert_eq!(host.calls, ["begin a.example", "end a.example false"]);
    let other = Wanted { challenge: Challenge::TlsAlpn01, ..wanted(&[]) };
    let failure = client.order(&other, &mut host).unwrap_err().what;
    assert!(failure.contains("offers dns-01, http-01 and not tls-alpn-01"), "{failure}");
}

#[test]
fn nothing_is_demanded_that_the_host_forbids() {
    let fake = Fake::default();
    let mut client = client(&fake);
    client.account(&APPLICANT).unwrap();
    let mut host = Witness { refuses_order: true, ..Witness::default() };
    assert_eq!(client.order(&wanted(&names()), &mut host).unwrap_err().what, "brakes");
    assert!(!fake.0.borrow().finalized);
}

#[test]
fn an_order_that_was_begun_is_gone_on_with_where_something_is_left_of_it() {
    let fake = Fake::default();
    let mut client = client(&fake);
    client.account(&APPLICANT).unwrap();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let mut resume = |url: &str| client.resume(url, &key, &names(), &mut Witness::default());
    let obtained = resume("https://ca/order/1").unwrap().unwrap();
    assert_eq!((obtained.chain.as_str(), &obtained.key), ("CHAIN", &key));
    for kind in ["malformed", "unauthorized", "accountDoesNotExist"] {
        fake.0.borrow_mut().problems = vec![("/order/1", kind)];
        assert!(resume("https://ca/order/1").unwrap().is_none(), "the authority knows nothing of it: {kind}");
    }
    for kind in ["serverInternal", "rateLimited", "compound"] {
        fake.0.borrow_mut().problems = vec![("/order/1", kind)];
        let failure = resume("https://ca/order/1").unwrap_err();
        assert_eq!((failure.kind.as_str(), failure.retry_after), (kind, Some(0)), "it may still be there");
    }
    assert!(resume("https://elsewhere/1").is_err(), "not reached: it may still be there");
}

#[test]
fn a_key_that_is_refused_is_told() {
    let fake = Fake::default();
    let mut client = client(&fake);
    client.account(&APPLICANT).unwrap();
    for (kind, told) in [("badCSR", 1), ("badPublicKey", 1), ("serverInternal", 0)] {
        fake.0.borrow_mut().problems = vec![("/finalize", kind)];
        let mut host = Witness::default();
        assert_eq!(client.order(&wanted(&names()), &mut host).unwrap_err().kind, kind);
        assert_eq!(host.refused_keys, told, "{kind}");
    }
}

#[test]
fn the_authority_is_told_of_another_address() {
    let fake = Fake::default();
    let mut client = client(&fake);
    client.change_contact("nobody@example.org").unwrap();
    assert!(fake.0.borrow().posted.is_empty(), "there is no account");
    client.account(&APPLICANT).unwrap();
    client.change_contact("other@example.org").unwrap();
    let authority = fake.0.borrow();
    let (path, protected, payload) = &authority.posted[1];
    assert_eq!((path.as_str(), &protected["kid"]), ("/account/1", &"https://ca/account/1".into()));
    assert_eq!(*payload, json!({ "contact": ["mailto:other@example.org"] }));
}

#[test]
fn windows_of_renewals_are_read_and_a_replaced_certificate_is_named() {
    let fake = Fake::default();
    fake.0.borrow_mut().window = Some(("2027-01-02T04:00:00Z", "2027-01-03T04:00:00.5+01:00"));
    let mut client = client(&fake);
    client.account(&APPLICANT).unwrap();
    assert_eq!(client.renewal("aki.serial").unwrap(), ((1_798_862_400, 1_798_945_200), Some(21_600)));
    fake.0.borrow_mut().problems = vec![("/ari/aki.serial", "malformed"), ("/new-order", "alreadyReplaced")];
    assert_eq!(client.renewal("aki.serial").unwrap_err().kind, "malformed");
    client.order(&wanted(&names()), &mut Witness::default()).unwrap();
    let authority = fake.0.borrow();
    assert_eq!(replaced(&authority), [&Value::from("aki.serial"), &Value::Null], "once more, without it");
    drop(authority);
    fake.0.borrow_mut().window = Some(("yesterday", "tomorrow"));
    assert!(client.renewal("aki.serial").unwrap_err().what.contains("no window in it that can be read"));
}

/// What the orders were to replace.
fn replaced(authority: &Authority) -> Vec<&Value> {
    let orders = authority.posted.iter().filter(|(path, _, _)| path == "/new-order");
    orders.map(|(_, _, payload)| &payload["replaces"]).collect()
}

/// The certificate may be of an account that is gone (RFC 9773, 5): that says nothing of the one that orders.
#[test]
fn a_refusal_to_replace_is_judged_by_an_order_that_replaces_nothing() {
    let fake = Fake::default();
    fake.0.borrow_mut().window = Some(("2027-01-02T04:00:00Z", "2027-01-03T04:00:00Z"));
    let mut client = client(&fake);
    client.account(&APPLICANT).unwrap();
    for (refused, kind, orders) in [
        (&["unauthorized"][..], "", 2),
        (&["malformed"], "", 2),
        (&["unauthorized", "unauthorized"], "unauthorized", 2),
        (&["malformed", "rejectedIdentifier"], "rejectedIdentifier", 2),
        (&["rateLimited"], "rateLimited", 1),
        (&["serverInternal"], "serverInternal", 1),
    ] {
        fake.0.borrow_mut().posted.clear();
        fake.0.borrow_mut().problems = refused.iter().map(|kind| ("/new-order", *kind)).collect();
        let outcome = client.order(&wanted(&names()), &mut Witness::default());
        assert_eq!(outcome.err().map_or(String::new(), |failure| failure.kind), kind, "{refused:?}");
        let authority = fake.0.borrow();
        let all = [Value::from("aki.serial"), Value::Null];
        assert_eq!(replaced(&authority), all[..orders].iter().collect::<Vec<_>>(), "{refused:?}");
    }
}

#[test]
fn accounts_elsewhere_are_bound_where_they_are_demanded() {
    let fake = Fake::default();
    fake.0.borrow_mut().eab = true;
    assert!(client(&fake).account(&APPLICANT).unwrap_err().what.contains("acme.eab.kid"));
    client(&fake).account(&Applicant { external: Some(("kid-1", "c2VjcmV0\n")), ..APPLICANT }).unwrap();
    let authority = fake.0.borrow();
    let binding = &authority.posted[0].2["externalAccountBinding"];
    let protected: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(binding["protected"].as_str().unwrap()).unwrap()).unwrap();
    assert_eq!(protected, json!({ "alg": "HS256", "kid": "kid-1", "url": "https://ca/account" }));
    drop(authority);
    let bad = Applicant { external: Some(("kid-1", "?")), ..APPLICANT };
    assert!(client(&fake).account(&bad).unwrap_err().what.contains("no base64url"));
}

#[test]
fn what_is_no_directory_is_said() {
    let found =
        |url| Client::new(Fake::default(), url, AccountKey::generate().unwrap(), None).map(drop).unwrap_err().what;
    assert!(found("https://ca/order/1").contains("no ACME directory: there is no newNonce"));
    assert!(found("https://ca/cert").contains("cannot be read"));
    assert_eq!(found("https://elsewhere/"), "no such host");
}
