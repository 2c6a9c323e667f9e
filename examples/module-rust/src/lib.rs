//! A module for the built-in worker, in Rust.
//!
//! ```sh
//! cargo build --release --manifest-path examples/module-rust/Cargo.toml
//! production_server --module examples/module-rust/target/release/libhandler.so --hot-reload=module
//! ```
//!
//! Change [`respond`], build again, and the next request gets it. The rest of the file is `examples/module/production_server.h`
//! in Rust's words; that header has the rules.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// The answers of this module. Several threads answer at once.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// What is answered: the status, the type and the body.
fn respond(method: &str, path: &str, body: &[u8]) -> (u32, &'static str, Vec<u8>) {
    match path {
        "/" => {
            let count = ANSWERS.fetch_add(1, Ordering::Relaxed) + 1;
            (200, "text/plain; charset=utf-8", format!("Hello from Rust ({count})\n").into_bytes())
        }
        "/echo" => (200, "application/octet-stream", body.to_vec()),
        _ => (404, "text/plain; charset=utf-8", format!("nothing to {method} at {path}\n").into_bytes()),
    }
}

/// The version of the header that the structures below are of.
const ABI: u32 = 1;

/// `struct ps_bytes`.
#[repr(C)]
pub struct Bytes {
    data: *const c_char,
    length: usize,
}

/// `struct ps_field`.
#[repr(C)]
pub struct Field {
    name: Bytes,
    value: Bytes,
}

/// `struct ps_request`.
#[repr(C)]
pub struct Request {
    method: Bytes,
    target: Bytes,
    path: Bytes,
    query: Bytes,
    fields: *const Field,
    field_count: usize,
    body: Bytes,
    version: u32,
}

/// `struct ps_response`.
#[repr(C)]
pub struct Response {
    status: u32,
    fields: *const Field,
    field_count: usize,
    body: Bytes,
    context: *mut c_void,
}

/// What a response points to, until it is released.
struct Kept {
    fields: [Field; 1],
    body: Vec<u8>,
}

impl Bytes {
    fn of(bytes: &[u8]) -> Bytes {
        Bytes { data: bytes.as_ptr().cast(), length: bytes.len() }
    }

    /// # Safety
    /// The bytes must be a request's, and the request not yet released.
    unsafe fn get(&self) -> &[u8] {
        // SAFETY: the caller's promise; the worker never gives NULL.
        unsafe { std::slice::from_raw_parts(self.data.cast(), self.length) }
    }

    /// # Safety
    /// As [`Bytes::get`].
    unsafe fn text(&self) -> &str {
        // SAFETY: the caller's promise.
        std::str::from_utf8(unsafe { self.get() }).unwrap_or("?")
    }
}

/// Says for which version of the header this is made.
#[unsafe(no_mangle)]
pub extern "C" fn ps_abi() -> u32 {
    ABI
}

/// Answers.
///
/// # Safety
/// To be called as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ps_handle(request: *const Request, response: *mut Response) -> c_int {
    // SAFETY: the worker gives one request and one response, whole, and nobody else has the response.
    let (request, response) = unsafe { (&*request, &mut *response) };
    // SAFETY: the request is not released before this returns.
    let (method, path, body) = unsafe { (request.method.text(), request.path.text(), request.body.get()) };
    let (status, kind, body) = respond(method, path, body);
    let fields = [Field { name: Bytes::of(b"Content-Type"), value: Bytes::of(kind.as_bytes()) }];
    let kept = Box::new(Kept { fields, body });
    response.status = status;
    response.fields = kept.fields.as_ptr();
    response.field_count = kept.fields.len();
    response.body = Bytes::of(&kept.body);
    response.context = Box::into_raw(kept).cast();
    0
}

/// Frees what the response holds.
///
/// # Safety
/// To be called as the header says: once for a response.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ps_release(response: *mut Response) {
    // SAFETY: the response is ours until this returns.
    let context = std::mem::replace(unsafe { &mut (*response).context }, ptr::null_mut());
    if !context.is_null() {
        // SAFETY: `ps_handle` put it there, and it is taken out once.
        drop(unsafe { Box::from_raw(context.cast::<Kept>()) });
    }
}
