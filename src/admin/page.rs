//! The files of the status page, which are part of the binary.

use crate::http::EntityTag;

/// A file of the status page.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub path: &'static str,
    /// Its media type.
    pub content_type: &'static [u8],
    /// Its content.
    pub bytes: &'static [u8],
    /// The value of `Cache-Control`.
    pub cache_control: &'static str,
    /// Differs if the content does.
    pub tag: EntityTag,
}

impl File {
    const fn new(path: &'static str, content_type: &'static [u8], bytes: &'static [u8]) -> File {
        File { path, content_type, bytes, cache_control: "no-cache", tag: EntityTag::of(bytes) }
    }

    /// An icon for a state of the daemon. The page needs the one for a lost daemon when the daemon
    /// can no longer serve it.
    const fn icon(path: &'static str, bytes: &'static [u8]) -> File {
        File { cache_control: "max-age=3600", ..File::new(path, SVG, bytes) }
    }
}

const HTML: &[u8] = b"text/html; charset=utf-8";
const CSS: &[u8] = b"text/css; charset=utf-8";
const SCRIPT: &[u8] = b"text/javascript; charset=utf-8";
const SVG: &[u8] = b"image/svg+xml";

/// All files.
pub static FILES: [File; 7] = [
    File::new("/", HTML, include_bytes!("../page/index.html")),
    File::new("/status.css", CSS, include_bytes!("../page/status.css")),
    File::new("/status.js", SCRIPT, include_bytes!("../page/status.js")),
    File::icon("/icon-good.svg", include_bytes!("../page/icon-good.svg")),
    File::icon("/icon-warn.svg", include_bytes!("../page/icon-warn.svg")),
    File::icon("/icon-bad.svg", include_bytes!("../page/icon-bad.svg")),
    File::icon("/icon-unknown.svg", include_bytes!("../page/icon-unknown.svg")),
];

/// The fields of every file: nothing is loaded from elsewhere, nothing inline is run, and no other
/// page shows this one in a frame. A browser asks each time whether a file other than an icon has
/// changed.
pub const FIELDS: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; \
    style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'\r\nReferrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_names_only_its_own_files() {
        let bytes: usize = FILES.iter().map(|file| file.bytes.len()).sum();
        assert!(bytes <= 24 * 1024, "{bytes} bytes");
        for file in &FILES {
            let text = std::str::from_utf8(file.bytes).expect("text");
            let addresses =
                text.matches("://").count() - text.matches("http://www.w3.org/").count();
            assert_eq!(addresses, 0, "{} names another host", file.path);
            assert!(!text.contains("innerHTML") && !text.contains("style="), "{}", file.path);
        }
        let mut tags: Vec<_> = FILES.iter().map(|file| file.tag.to_string()).collect();
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), FILES.len());
    }
}
