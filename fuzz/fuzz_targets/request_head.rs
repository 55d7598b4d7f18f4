//! Request heads: any split is parsed the same, a repeated head says the same, and an accepted head
//! is accepted again when it is written from its parsed parts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::frontend::{Frontend, Parser, Step};
use patroniglue::http::head::{Framing, request};
use patroniglue::time::Time;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let mut whole_parser = Parser::default();
    let mut ask = || Frontend::new(Time::ZERO).receive(Time::ZERO, bytes, &mut whole_parser);
    let whole = ask();
    assert_eq!(whole, ask());
    let mut frontend = Frontend::new(Time::ZERO);
    let mut parser = Parser::default();
    let mut split = Step::Continue;
    for piece in bytes.chunks(usize::from(step) + 1) {
        split = frontend.receive(Time::ZERO, piece, &mut parser);
        if split != Step::Continue {
            break;
        }
    }
    // bytes beyond all limits may be refused for another reason if they come in one piece
    if bytes.len() < 4096 {
        assert_eq!(whole, split);
        if let Step::Ask(_) = whole {
            assert_eq!(whole_parser.target, parser.target);
        }
    }
    if let Ok(Some(head)) = request(bytes) {
        assert!(head.head_bytes <= bytes.len());
        let text = format!("{} {} HTTP/1.1\r\n\r\n", head.method.name(), head.target);
        if head.method.name() != "-" {
            let again = request(text.as_bytes()).expect("accepted before").expect("whole");
            assert_eq!((again.method, again.target), (head.method, head.target));
            assert_eq!(again.framing, Framing::Length(0));
        }
    }
});
