//! The offset of local time, from the C library: the rules of time zones are its own.

/// Seconds east of UTC at a moment, given in seconds since 1970-01-01T00:00:00Z; 0 where that is not known. The zone is read from `TZ` or
/// /etc/localtime once; [`prepare`] does that before there is a loop.
pub fn offset(second: u64) -> i32 {
    let Ok(second) = libc::time_t::try_from(second) else { return 0 };
    // SAFETY: numbers and a pointer, for all of which zero is a value.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of their types; the function keeps neither.
    let known = unsafe { !libc::localtime_r(&second, &mut parts).is_null() };
    if known { i32::try_from(parts.tm_gmtoff).unwrap_or(0) } else { 0 }
}

/// Reads the zone, so that no loop touches the file system for it.
pub fn prepare() {
    offset(0);
}
