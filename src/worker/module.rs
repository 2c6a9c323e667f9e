//! A handler in a shared object, behind the C ABI of `examples/module/production_server.h`. All that is `unsafe` about
//! modules is here; what comes out is checked and lives as long as it is lent.
//!
//! A module runs in this process and is trusted as far as its code goes: that it keeps to the header cannot be checked from
//! here, and what it breaks ends this worker, not the server. Its mistakes that can be seen are answered with 500.
//!
//! Each load has a copy of the file of its own. dlopen(3) gives the old handle again for a name or a file that is loaded, and
//! a mapped file that is overwritten takes the process down with it.

use std::ffi::{OsStr, c_int, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::answers::Question;
use crate::http::Version;
use crate::http::is_token;

/// `PS_ABI` of the header.
const ABI: u32 = 1;
/// Field lines of an answer at most: a front counts its own up to 100.
const MOST_FIELDS: usize = 96;
/// Bytes of an answer's field lines at most: a front takes heads of 32 KiB, if nothing else is said.
const MOST_FIELD_BYTES: usize = 15 * 1024;
/// Loads of this process; each has a name of its own.
static LOADS: AtomicU32 = AtomicU32::new(0);

// SAFETY of calling these: the arguments are those of the header, and the module is loaded.
type AbiFunction = unsafe extern "C" fn() -> u32;
type HandleFunction = unsafe extern "C" fn(*const RawRequest, *mut RawResponse) -> c_int;
type ReleaseFunction = unsafe extern "C" fn(*mut RawResponse);
type StartFunction = unsafe extern "C" fn() -> c_int;
type StopFunction = unsafe extern "C" fn();

/// `struct ps_bytes`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Bytes {
    data: *const u8,
    length: usize,
}

impl Bytes {
    fn of(bytes: &[u8]) -> Bytes {
        Bytes { data: bytes.as_ptr(), length: bytes.len() }
    }
}

/// `struct ps_field`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Field {
    name: Bytes,
    value: Bytes,
}

/// `struct ps_request`.
#[repr(C)]
#[derive(Debug)]
struct RawRequest {
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
#[derive(Debug)]
struct RawResponse {
    status: u32,
    fields: *const Field,
    field_count: usize,
    body: Bytes,
    context: *mut c_void,
}

/// A connection's memory for the fields of a request, used again for the next one.
#[derive(Debug, Default)]
pub(super) struct Scratch(Vec<Field>);

/// A loaded and started module. Dropped, it is stopped and unloaded.
#[derive(Debug)]
pub(super) struct Module {
    handle: HandleFunction,
    release: ReleaseFunction,
    stop: Option<StopFunction>,
    /// A wrong answer was reported.
    complained: AtomicBool,
    /// Unloaded at its end, after `stop`, and after all answers of the module, which borrow it.
    _library: Library,
}

impl Module {
    /// Loads a module from the bytes of its file and starts it. `name` is the file's.
    ///
    /// # Errors
    /// What is wrong with it, in a few words. Nothing of it stays loaded then.
    pub(super) fn load(bytes: &[u8], name: &OsStr) -> Result<Module, String> {
        check_whole(bytes)?;
        let copy = copy::make(bytes, name, LOADS.fetch_add(1, Ordering::Relaxed))
            .map_err(|error| format!("cannot copy it: {error}"))?;
        // SAFETY: loading runs the initializers of a file that the operator named to be run here. The copy is private, so
        // that nobody changes it while it is mapped. RTLD_NOW: what is missing shows here and not in a request.
        let library = unsafe { Library::open(Some(copy.path()), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| without_path(&reason(&error), copy.path()))?;
        let abi: AbiFunction = required(&library, "ps_abi")?;
        // SAFETY: by the header, `ps_abi` may be called at any time.
        let version = unsafe { abi() };
        if version != ABI {
            return Err(format!(
                "it is made for version {version} of the interface, and this server has version {ABI}"
            ));
        }
        let (handle, release) = (required(&library, "ps_handle")?, required(&library, "ps_release")?);
        let stop: Option<StopFunction> = optional(&library, "ps_stop");
        if let Some(start) = optional::<StartFunction>(&library, "ps_start") {
            // SAFETY: it is called once, before everything else but `ps_abi`.
            let code = unsafe { start() };
            if code != 0 {
                return Err(format!("ps_start returned {code}"));
            }
        }
        Ok(Module { handle, release, stop, complained: AtomicBool::new(false), _library: library })
    }

    /// Has a request answered. The answer borrows the module and what the request points to.
    pub(super) fn handle<'a>(&'a self, question: &Question<'a>, scratch: &'a mut Scratch) -> Answer<'a> {
        let Question { head, request, fields, body, .. } = *question;
        let list = &mut scratch.0;
        list.clear();
        list.extend(
            fields
                .iter()
                .map(|field| Field { name: Bytes::of(field.name.of(head)), value: Bytes::of(field.value.of(head)) }),
        );
        let target = request.target.path.of(head);
        let query = memchr::memchr(b'?', target).map_or(&b""[..], |mark| &target[mark + 1..]);
        let raw = RawRequest {
            method: Bytes::of(request.method_span.of(head)),
            target: Bytes::of(request.target.whole.of(head)),
            path: Bytes::of(request.target.path_bytes(head)),
            query: Bytes::of(query),
            fields: list.as_ptr(),
            field_count: list.len(),
            body: Bytes::of(body),
            version: if request.version == Version::Http11 { 11 } else { 10 },
        };
        let nothing = Bytes { data: ptr::null(), length: 0 };
        let mut response =
            RawResponse { status: 200, fields: ptr::null(), field_count: 0, body: nothing, context: ptr::null_mut() };
        // SAFETY: both structures are those of the header and outlive the call; the request's pointers are of slices that
        // live as long as the answer, which is when `ps_release` is called. That `ps_handle` may run on several threads is
        // the header's rule.
        let code = unsafe { (self.handle)(&raw, &mut response) };
        Answer { module: self, code, response, _request: PhantomData }
    }

    /// Reports a wrong answer: the first one, because the next ones come with each request.
    pub(super) fn complain(&self, what: &str) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            eprintln!("the module's answer is wrong: {what}; later ones of this version are not reported");
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Some(stop) = self.stop {
            // SAFETY: `ps_start` has succeeded, all answers are released because they borrow the module, and this is the one
            // time that it is called. The library is unloaded behind it.
            unsafe { stop() };
        }
    }
}

/// What a module has answered. Dropped, it is released.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    module: &'a Module,
    code: c_int,
    response: RawResponse,
    /// The response may point into the request.
    _request: PhantomData<&'a [u8]>,
}

impl Answer<'_> {
    /// The status and the body, once everything is found to be as the header says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(u16, &[u8]), String> {
        if self.code != 0 {
            return Err(format!("ps_handle returned {}", self.code));
        }
        let status = u16::try_from(self.response.status).ok().filter(|status| (200..600).contains(status));
        let status = status.ok_or_else(|| format!("its status is {}", self.response.status))?;
        let count = self.response.field_count;
        if count > MOST_FIELDS || (count > 0 && self.response.fields.is_null()) {
            return Err(format!("it has {count} fields"));
        }
        let mut total = 0_usize;
        for field in self.raw_fields() {
            let (name, value) = self.field(field).ok_or("a field is NULL or larger than the memory")?;
            let shown = String::from_utf8_lossy(&name[..name.len().min(64)]);
            if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
                return Err(format!("`{}` is no name of a field", shown.escape_debug()));
            }
            if value.iter().any(|&byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
                return Err(format!("the value of `{shown}` has a control character in it"));
            }
            total += name.len() + value.len() + b": \r\n".len();
            if total > MOST_FIELD_BYTES {
                return Err(format!("its fields have more than {MOST_FIELD_BYTES} bytes"));
            }
        }
        let body = self.slice(self.response.body).ok_or("its body is NULL or larger than the memory")?;
        Ok((status, body))
    }

    /// The fields of an answer that was found to be right.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.raw_fields().iter().filter_map(|field| self.field(field))
    }

    fn raw_fields(&self) -> &[Field] {
        if self.response.fields.is_null() {
            return &[];
        }
        // SAFETY: by the header, so many fields lie there until the response is released, which is when `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.response.fields, self.response.field_count.min(MOST_FIELDS)) }
    }

    fn field(&self, field: &Field) -> Option<(&[u8], &[u8])> {
        Some((self.slice(field.name)?, self.slice(field.value)?))
    }

    fn slice(&self, bytes: Bytes) -> Option<&[u8]> {
        if bytes.length == 0 {
            return Some(&[]);
        }
        if bytes.data.is_null() || bytes.length > isize::MAX as usize {
            return None;
        }
        // SAFETY: by the header, so many bytes lie there, unchanged until the response is released, which is when `self` is
        // dropped. They are not NULL and not longer than a slice may be.
        Some(unsafe { std::slice::from_raw_parts(bytes.data, bytes.length) })
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        // SAFETY: once after its `ps_handle`, on the same thread: an answer has raw pointers in it and cannot be sent to
        // another one.
        unsafe { (self.module.release)(&mut self.response) };
    }
}

fn required<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    optional(library, name).ok_or_else(|| format!("it has no function {name}"))
}

/// `T` is the type of the function of that name in the header.
fn optional<T: Copy>(library: &Library, name: &str) -> Option<T> {
    // SAFETY: the callers in this file ask for each name with its type from the header. The pointer is used only while the
    // library is loaded, because it lies in the module beside it.
    let symbol = unsafe { library.get::<Option<T>>(name) }.ok()?;
    *symbol
}

fn reason(error: &libloading::Error) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    cause.unwrap_or_else(|| error.to_string())
}

/// dlerror(3) begins with the path that was loaded, which is the copy's and tells nobody anything.
fn without_path(text: &str, path: &Path) -> String {
    text.replace(&format!("{}: ", path.display()), "").replace(&path.display().to_string(), "it")
}

/// Refuses a file that is no shared object or is not there to its end. A linker may still be writing it; a mapping beyond a
/// file's end kills the process at the first touch (SIGBUS), and the dynamic loader does not look.
///
/// What is read is laid out as elf(5) says, for 64 bits; the loader alone judges other objects.
fn check_whole(bytes: &[u8]) -> Result<(), String> {
    const LOAD: u64 = 1;
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    if bytes.len() < 64 || !bytes.starts_with(b"\x7fELF") {
        return Err("it is no shared object".to_owned());
    }
    if bytes[4] != 2 {
        return Ok(());
    }
    let number = |at: usize, width: usize| -> u64 {
        let mut word = [0; 8];
        let place = if cfg!(target_endian = "big") { 8 - width } else { 0 };
        word[place..place + width].copy_from_slice(&bytes[at..at + width]);
        u64::from_ne_bytes(word)
    };
    let inside = |start: u64, length: u64| start.checked_add(length).is_some_and(|end| end <= bytes.len() as u64);
    let (programs, each, count) = (number(32, 8), number(54, 2), number(56, 2));
    let mut whole = inside(programs, each * count) && inside(number(40, 8), number(58, 2) * number(60, 2));
    if whole && each >= 56 {
        let mut headers = (0..count).map(|index| (programs + index * each) as usize);
        whole = headers.all(|at| number(at, 4) != LOAD || inside(number(at + 8, 8), number(at + 32, 8)));
    }
    if whole { Ok(()) } else { Err("it is cut off: perhaps it is still being written".to_owned()) }
}

/// Copies that only this process sees, in memory: directories for temporary files may forbid running what is in them.
#[cfg(target_os = "linux")]
mod copy {
    use std::ffi::{CString, OsStr};
    use std::fs::File;
    use std::io::{self, Write};
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    /// Bytes of the name that memfd_create(2) takes.
    const MOST_NAME: usize = 249;

    /// Needed until it is loaded.
    pub(super) struct Copy {
        _file: File,
        path: PathBuf,
    }

    impl Copy {
        pub(super) fn path(&self) -> &Path {
            &self.path
        }
    }

    pub(super) fn make(bytes: &[u8], name: &OsStr, count: u32) -> io::Result<Copy> {
        let shown = &name.as_bytes()[..name.len().min(MOST_NAME)];
        let name = CString::new(shown).unwrap_or_default();
        // SAFETY: the name is a string that ends in NUL and outlives the call.
        let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        let mut file = unsafe { File::from_raw_fd(descriptor) };
        file.write_all(bytes)?;
        let path = spell(file.as_raw_fd(), count);
        Ok(Copy { _file: file, path })
    }

    /// The descriptor's number will be another file's, but dlopen(3) knows what is loaded by name, and some objects are never
    /// unloaded (thread-local destructors, unique symbols). So each load spells the path in a way of its own: 32 places with
    /// `/` or `./`, which mean nothing.
    pub(super) fn spell(descriptor: i32, count: u32) -> PathBuf {
        let places: String = (0..u32::BITS).map(|bit| if count >> bit & 1 == 1 { "./" } else { "/" }).collect();
        PathBuf::from(format!("/proc/self/fd/{places}{descriptor}"))
    }
}

/// Copies beside other temporary files, without a name as soon as they are loaded.
#[cfg(not(target_os = "linux"))]
mod copy {
    use std::ffi::OsStr;
    use std::fs::OpenOptions;
    use std::io::{self, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::{Path, PathBuf};

    /// Removed when it is dropped.
    pub(super) struct Copy(PathBuf);

    impl Copy {
        pub(super) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Copy {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    pub(super) fn make(bytes: &[u8], _name: &OsStr, count: u32) -> io::Result<Copy> {
        let path = std::env::temp_dir().join(format!("production_server-{}-{count}.so", std::process::id()));
        // One that is there is of a dead process with the same number.
        std::fs::remove_file(&path).ok();
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
        let copy = Copy(path);
        file.write_all(bytes)?;
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_shared_object_or_is_cut_off_is_never_mapped() {
        if !cfg!(target_os = "linux") {
            return;
        }
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(check_whole(&program), Ok(()));
        for length in [64, 1000, program.len() / 2, program.len() - 1] {
            let said = check_whole(&program[..length]).unwrap_err();
            assert!(said.contains("cut off"), "{length}: {said}");
        }
        for text in [&b""[..], b"\x7fELF", &[b'x'; 100]] {
            assert_eq!(check_whole(text), Err("it is no shared object".to_owned()));
        }
        let mut wild = program[..4096].to_vec();
        wild[32..40].fill(0xff);
        assert!(check_whole(&wild).is_err(), "offsets that overflow");
        let error = Module::load(&[b'x'; 100], OsStr::new("x.so")).unwrap_err();
        assert_eq!(error, "it is no shared object");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn each_load_has_a_path_of_its_own_to_the_same_descriptor() {
        use std::os::fd::AsRawFd;
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let mut paths: Vec<_> = [0, 1, 2, 3, 64, u32::MAX].map(|count| copy::spell(file.as_raw_fd(), count)).into();
        for path in &paths {
            assert_eq!(std::fs::read_link(path).unwrap(), std::fs::read_link("/proc/self/exe").unwrap());
        }
        let count = paths.len();
        paths.sort_by_key(|path| path.as_os_str().to_owned());
        paths.dedup_by_key(|path| path.as_os_str().to_owned());
        assert_eq!(paths.len(), count);
    }
}
