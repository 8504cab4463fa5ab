//! The table of the house in `CONTRIBUTING.md`: each room stands in it, and imports run downwards.

use std::{collections::HashMap, fs, path::Path};

const RULES: &str = include_str!("../../CONTRIBUTING.md");

/// The floor of each room, counted from the top.
fn floors() -> HashMap<&'static str, usize> {
    let table = RULES.split_once("| floor | files | role |\n").expect("there is the table of the house").1;
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let rooms = rows.map(|row| row.split('|').nth(2).expect("files").split('`').skip(1).step_by(2));
    let mut floors = HashMap::new();
    for (floor, room) in rooms.enumerate().flat_map(|(floor, rooms)| rooms.map(move |room| (floor, room))) {
        assert_eq!(floors.insert(room, floor), None, "`{room}` stands in the table twice");
    }
    floors
}

/// The rooms that a source file imports from.
fn imports(source: &str) -> Vec<&str> {
    let declarations = source.split("\nuse crate::").skip(1).map(|rest| rest.split_once(';').expect("its end").0);
    declarations.flat_map(|paths| outermost(paths.trim_start_matches('{'))).map(first_word).collect()
}

/// The parts between the commas that stand in no further braces.
fn outermost(paths: &str) -> Vec<&str> {
    let mut depth = 0;
    let between = |symbol: char| {
        depth += i32::from(symbol == '{') - i32::from(symbol == '}');
        symbol == ',' && depth == 0
    };
    paths.split(between).map(str::trim).filter(|path| path.starts_with(char::is_alphabetic)).collect()
}

fn first_word(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

#[test]
fn each_room_stands_in_the_table_and_imports_run_downwards() {
    let floors = floors();
    let mut seen = 0;
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let path = file.unwrap().path();
        let room = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() || room == "lib" {
            continue;
        }
        seen += 1;
        let floor = *floors.get(room).unwrap_or_else(|| panic!("`{room}` stands not in the table"));
        for import in imports(&fs::read_to_string(&path).unwrap()) {
            let other =
                *floors.get(import).unwrap_or_else(|| panic!("`{room}` imports `{import}`, no room of the table"));
            assert!(other >= floor, "`{room}` imports upwards from `{import}`");
        }
    }
    assert_eq!(seen, floors.len(), "the table has a room that is gone");
}

#[test]
fn imports_are_found_in_each_form() {
    assert_eq!(imports("\nuse crate::one::{Two, Three};\n\nuse crate::four;\n"), ["one", "four"]);
    let nested = "\nuse crate::{\n    one,\n    two::{self, Three, four::{Five, Six}},\n    seven::Eight,\n};\n";
    assert_eq!(imports(nested), ["one", "two", "seven"]);
}
