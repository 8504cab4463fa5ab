//! Draws the picture of the README, what happens when: `timeline docs/timeline.svg`.

use std::{env, error::Error, fmt::Write as _, fs};

const WIDTH: usize = 760;
const HEIGHT: usize = 330;
/// Where time begins, and how wide a hundredth of it is.
const LEFT: usize = 150;
const UNIT: usize = 6;
const ROW: usize = 34;
const TOP: usize = 76;

const REQUEST: &str = "#9aa5b1";
const EVENT: &str = "#0b6e4f";
const DRAIN: &str = "#d9e2ec";
const INK: &str = "#1f2933";
const LOST: &str = "#b42318";

struct Bar {
    row: usize,
    from: usize,
    to: usize,
    colour: &'static str,
    text: &'static str,
    text_colour: &'static str,
}

const ROWS: [&str; 5] = ["a request", "its event", "a later request", "its event", "handle.drain(limit)"];

const BARS: [Bar; 6] = [
    Bar { row: 0, from: 4, to: 22, colour: REQUEST, text: "request", text_colour: INK },
    Bar { row: 1, from: 22, to: 38, colour: EVENT, text: "order.created", text_colour: "#ffffff" },
    Bar { row: 2, from: 30, to: 66, colour: REQUEST, text: "still being answered", text_colour: INK },
    Bar { row: 3, from: 66, to: 82, colour: EVENT, text: "order.created", text_colour: "#ffffff" },
    Bar { row: 4, from: 56, to: 82, colour: DRAIN, text: "waits for both", text_colour: INK },
    Bar { row: 4, from: 82, to: 90, colour: "#bcccdc", text: "quiet", text_colour: INK },
];

/// When, what, on which line above the rows, and where its text is from there.
const INSTANTS: [(usize, &str, usize, &str, &str); 3] = [
    (44, "SIGTERM: begin_drain()", 0, "middle", INK),
    (56, "the server has returned", 1, "start", LOST),
    (90, "Ok(report)", 0, "middle", INK),
];

/// Where an event was tracked: row and instant.
const TRACKED: [(usize, usize); 2] = [(0, 7), (2, 34)];

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("timeline docs/timeline.svg")?;
    fs::write(path, draw()?)?;
    Ok(())
}

fn draw() -> Result<String, std::fmt::Error> {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <title>Events start when their response is over; the drain waits for requests and events</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let bottom = TOP + ROWS.len() * ROW;
    for (row, name) in ROWS.iter().enumerate() {
        let y = TOP + row * ROW + 20;
        text(&mut svg, (LEFT - 12, y), "end", INK, name)?;
    }
    for (at, what, line, anchor, colour) in INSTANTS {
        let (x, y) = (LEFT + at * UNIT, 28 + line * 22);
        let top = y + 6;
        writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"{top}\" x2=\"{x}\" y2=\"{bottom}\" stroke=\"{colour}\" stroke-dasharray=\"4 3\"/>"
        )?;
        text(&mut svg, (x, y), anchor, colour, what)?;
    }
    for Bar { row, from, to, colour, text: inside, text_colour } in BARS {
        let (x, y, width) = (LEFT + from * UNIT, TOP + row * ROW + 5, (to - from) * UNIT);
        writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"22\" rx=\"3\" fill=\"{colour}\"/>")?;
        text(&mut svg, (x + width / 2, y + 16), "middle", text_colour, inside)?;
    }
    for (row, at) in TRACKED {
        let (x, y) = (LEFT + at * UNIT, TOP + row * ROW + 27);
        writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"5\" fill=\"{EVENT}\" stroke=\"#ffffff\"/>")?;
    }
    let (x, y) = (LEFT, bottom + 24);
    writeln!(svg, "<circle cx=\"{}\" cy=\"{}\" r=\"5\" fill=\"{EVENT}\"/>", x + 5, y - 4)?;
    text(
        &mut svg,
        (x + 18, y),
        "start",
        INK,
        "events.track(..): accepted or rejected at once, started when the response is over",
    )?;
    text(
        &mut svg,
        (x, y + 24),
        "start",
        INK,
        "A spawned task that is not done when the server has returned is lost with the process.",
    )?;
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn text(svg: &mut String, (x, y): (usize, usize), anchor: &str, colour: &str, text: &str) -> std::fmt::Result {
    writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>")
}
