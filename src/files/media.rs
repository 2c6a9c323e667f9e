//! What a file's name says of its content: the media type, and whether it is worth looking for a compressed sibling.

/// Endings in lower case, each with its media type (IANA's registry). In the order of the alphabet, for the search.
const TYPES: &[(&str, &str)] = &[
    ("3gp", "video/3gpp"),
    ("7z", "application/x-7z-compressed"),
    ("aac", "audio/aac"),
    ("apng", "image/apng"),
    ("atom", "application/atom+xml"),
    ("avi", "video/x-msvideo"),
    ("avif", "image/avif"),
    ("bmp", "image/bmp"),
    ("br", "application/octet-stream"),
    ("bz2", "application/x-bzip2"),
    ("cjs", "text/javascript; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("doc", "application/msword"),
    ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ("eot", "application/vnd.ms-fontobject"),
    ("epub", "application/epub+zip"),
    ("flac", "audio/flac"),
    ("gif", "image/gif"),
    ("glb", "model/gltf-binary"),
    ("gltf", "model/gltf+json"),
    ("gz", "application/gzip"),
    ("heic", "image/heic"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/vnd.microsoft.icon"),
    ("ics", "text/calendar; charset=utf-8"),
    ("jar", "application/java-archive"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("jsonld", "application/ld+json"),
    ("jxl", "image/jxl"),
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("m4a", "audio/mp4"),
    ("m4s", "video/iso.segment"),
    ("m4v", "video/mp4"),
    ("map", "application/json"),
    ("md", "text/markdown; charset=utf-8"),
    ("mid", "audio/midi"),
    ("midi", "audio/midi"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mkv", "video/matroska"),
    ("mov", "video/quicktime"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("mpd", "application/dash+xml"),
    ("mpeg", "video/mpeg"),
    ("oga", "audio/ogg"),
    ("ogg", "audio/ogg"),
    ("ogv", "video/ogg"),
    ("opus", "audio/ogg"),
    ("otf", "font/otf"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("ppt", "application/vnd.ms-powerpoint"),
    ("pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    ("rar", "application/vnd.rar"),
    ("rss", "application/rss+xml"),
    ("rtf", "application/rtf"),
    ("svg", "image/svg+xml"),
    ("tar", "application/x-tar"),
    ("tif", "image/tiff"),
    ("tiff", "image/tiff"),
    ("toml", "application/toml"),
    ("ts", "video/mp2t"),
    ("ttc", "font/collection"),
    ("ttf", "font/ttf"),
    ("txt", "text/plain; charset=utf-8"),
    ("vtt", "text/vtt; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("wav", "audio/wav"),
    ("weba", "audio/webm"),
    ("webm", "video/webm"),
    ("webmanifest", "application/manifest+json"),
    ("webp", "image/webp"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xhtml", "application/xhtml+xml"),
    ("xls", "application/vnd.ms-excel"),
    ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    ("xml", "application/xml"),
    ("yaml", "application/yaml"),
    ("yml", "application/yaml"),
    ("zip", "application/zip"),
    ("zst", "application/zstd"),
];

/// What nothing is known of (RFC 2046 §4.5.1).
pub const UNKNOWN: &str = "application/octet-stream";

/// The media type of a file of that name or path.
pub fn type_of(path: &[u8]) -> &'static str {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0) else { return UNKNOWN };
    let mut room = [0; 16];
    let Some(ending) = room.get_mut(..name.len() - dot - 1) else { return UNKNOWN };
    ending.copy_from_slice(&name[dot + 1..]);
    ending.make_ascii_lowercase();
    TYPES.binary_search_by(|(known, _)| known.as_bytes().cmp(ending)).map_or(UNKNOWN, |at| TYPES[at].1)
}

/// Whether content of that type gets much smaller, so that compressed siblings are looked for.
pub fn is_compressible(media_type: &str) -> bool {
    let kind = media_type.split(';').next().unwrap_or_default();
    let structured = ["+json", "+xml", "/json", "/xml", "/wasm", "/yaml", "/toml", "/vnd.ms-fontobject", "/rtf"];
    kind.starts_with("text/")
        || structured.iter().any(|ending| kind.ends_with(ending))
        || matches!(kind, "font/ttf" | "font/otf" | "image/bmp" | "image/vnd.microsoft.icon" | "model/gltf-binary")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_say_what_a_file_is() {
        assert!(TYPES.is_sorted_by(|one, other| one.0 < other.0), "the search needs the alphabet");
        for (path, expected, compressible) in [
            ("index.html", "text/html; charset=utf-8", true),
            ("a/b.min.JS", "text/javascript; charset=utf-8", true),
            ("a.svg", "image/svg+xml", true),
            ("a.png", "image/png", false),
            ("a.woff2", "font/woff2", false),
            ("app.wasm", "application/wasm", true),
            ("site.webmanifest", "application/manifest+json", true),
            ("a.tar.gz", "application/gzip", false),
            ("README", UNKNOWN, false),
            (".html", UNKNOWN, false),
            ("a.b/c", UNKNOWN, false),
            ("a.", UNKNOWN, false),
            ("a.averyveryverylongending", UNKNOWN, false),
            ("", UNKNOWN, false),
        ] {
            let found = type_of(path.as_bytes());
            assert_eq!((found, is_compressible(found)), (expected, compressible), "{path}");
        }
    }
}
