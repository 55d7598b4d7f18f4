//! The body decoder: any split gives the same body and takes the same number of bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::http::body::{BadFraming, BodyDecoder};
use patroniglue::http::head::Framing;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (framing, step, bytes) = input;
    let framing = match framing % 3 {
        0 => Framing::Chunked,
        1 => Framing::Eof,
        _ => Framing::Length(u64::from(framing)),
    };
    let whole = decoded(framing, bytes, bytes.len().max(1));
    assert_eq!(whole, decoded(framing, bytes, usize::from(step) + 1));
    if let Ok((body, taken)) = whole {
        assert!(body.len() <= taken && taken <= bytes.len());
        // encoded again in chunks and with a length it decodes to the same bytes
        let mut chunked = Vec::new();
        for chunk in body.chunks(usize::from(step) + 1) {
            chunked.extend_from_slice(format!("{:x};a=\"b\"\r\n", chunk.len()).as_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
        let bytes = chunked.len();
        assert_eq!(decoded(Framing::Chunked, &chunked, 7), Ok((body.clone(), bytes)));
        let length = body.len();
        let framing = Framing::Length(length as u64);
        chunked = body.clone();
        chunked.extend_from_slice(b"surplus");
        assert_eq!(decoded(framing, &chunked, 5), Ok((body, length)));
    }
});

fn decoded(framing: Framing, bytes: &[u8], step: usize) -> Result<(Vec<u8>, usize), BadFraming> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut body, mut taken) = (Vec::new(), 0);
    for piece in bytes.chunks(step) {
        let mut at = 0;
        while at < piece.len() && !decoder.is_done() {
            let step = decoder.decode(&piece[at..])?;
            assert!(step.taken > 0);
            body.extend_from_slice(step.data);
            at += step.taken;
        }
        taken += at;
    }
    decoder.eof();
    Ok((body, taken))
}
