//! A Rust file as the checks see it: every line split into code and comment, with the `cfg`s that govern it.
//!
//! This is a scanner, no parser. It knows comments, string and character literals, attributes and braces, which
//! is enough to tell code from prose and tests from library code:
//! ```text
//! pub fn f() {}            code
//! /// Frees. `x.unwrap()`  comment (doc)
//! /// ```
//! /// f(); // SL-01        comment (doc, inside a fence: an example is a test)
//! #[cfg(test)]             code, under {test}
//! mod tests {              code, under {test}
//!     // SL-02             comment, under {test}
//! }
//! ```
//! String contents are blanked in the code part, so that no rule trips over a message.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The conditions that a line is compiled under, as far as a check cares.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Under {
    /// Only compiled for tests.
    pub(crate) test: bool,
    /// Only compiled when some feature of the crate is on (or for tests).
    pub(crate) feature: bool,
    /// Only compiled under loom.
    pub(crate) loom: bool,
}

impl Under {
    fn union(self, other: Self) -> Self {
        Self { test: self.test || other.test, feature: self.feature || other.feature, loom: self.loom || other.loom }
    }
}

/// What a comment is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Comment {
    /// The line has none, or a plain one.
    #[default]
    Plain,
    /// Documentation.
    Doc,
    /// Documentation inside a code fence that is compiled as a test.
    Example,
}

/// One line of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    /// The code, without comments and with literals blanked.
    pub(crate) code: String,
    /// The text of the comments on the line.
    pub(crate) comment: String,
    /// What kind of comment that is.
    pub(crate) kind: Comment,
    /// What the line is compiled under.
    pub(crate) under: Under,
}

/// A scanned file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Path relative to the workspace.
    pub(crate) path: PathBuf,
    /// The raw text.
    pub(crate) text: String,
    /// The lines, in order.
    pub(crate) lines: Vec<Line>,
}

impl Source {
    /// The tests that are compiled only under loom: line number and name of each function behind a `#[test]`.
    pub(crate) fn models(&self) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        let mut marked = false;
        for (index, line) in self.lines.iter().enumerate().filter(|(_, line)| line.under.loom) {
            marked |= line.code.contains("#[test]");
            if marked && let Some((_, rest)) = line.code.split_once("fn ") {
                let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
                found.push((index + 1, &rest[..end]));
                marked = false;
            }
        }
        found
    }

    /// Whether a comment on this line counts as part of a test.
    pub(crate) fn cites(line: &Line) -> bool {
        line.under.test || line.kind == Comment::Example
    }
}

/// Scans every `.rs` file given (paths relative to `root`), resolving out-of-line modules, so that a file that only
/// a `#[cfg(test)] mod name;` brings in counts as a test.
pub(crate) fn scan_all(root: &Path, paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut texts = BTreeMap::new();
    for path in paths {
        texts.insert(path.clone(), std::fs::read_to_string(root.join(path))?);
    }
    let mut inherited: BTreeMap<PathBuf, Under> = BTreeMap::new();
    let mut scanned: BTreeMap<PathBuf, Source> = BTreeMap::new();
    let mut pending: BTreeSet<PathBuf> = texts.keys().cloned().collect();
    // A conditional module may declare further modules: repeat until nothing new is inherited.
    while let Some(path) = pending.pop_first() {
        let Some(text) = texts.get(&path) else { continue };
        let outer = under_of_path(&path).union(inherited.get(&path).copied().unwrap_or_default());
        let (lines, modules) = scan(text, outer);
        for (name, under) in modules {
            for target in module_files(&path, &name) {
                let merged = inherited.get(&target).copied().unwrap_or_default().union(under);
                if texts.contains_key(&target) && inherited.get(&target) != Some(&merged) {
                    inherited.insert(target.clone(), merged);
                    pending.insert(target);
                }
            }
        }
        scanned.insert(path.clone(), Source { path, text: text.clone(), lines });
    }
    Ok(scanned.into_values().collect())
}

/// A file under `tests/`, `benches/` or `examples/`, or called `tests.rs`, is a test whatever it says itself.
fn under_of_path(path: &Path) -> Under {
    let test = path
        .components()
        .any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "benches" | "examples" | "fuzz" | "tests.rs")));
    Under { test, ..Under::default() }
}

fn module_files(declared_in: &Path, name: &str) -> [PathBuf; 2] {
    let folder = declared_in.parent().unwrap_or(Path::new(""));
    let stem = declared_in.file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
    let base = if matches!(stem, "lib" | "main" | "mod") { folder.to_owned() } else { folder.join(stem) };
    [base.join(format!("{name}.rs")), base.join(name).join("mod.rs")]
}

/// A region opened by a conditional item or attribute.
struct Region {
    under: Under,
    /// Brace depth at which the item began: the region ends when the depth returns here.
    depth: usize,
    /// Whether the item's braces have opened.
    opened: bool,
}

/// Splits `text` into lines and reports the conditional out-of-line modules in it.
pub(crate) fn scan(text: &str, outer: Under) -> (Vec<Line>, Vec<(String, Under)>) {
    let mut lines = split(text);
    let mut modules = Vec::new();
    let mut whole_file = outer;
    let mut regions: Vec<Region> = Vec::new();
    let mut depth = 0_usize;
    // Round and square brackets: a `;` inside them (an array type) ends no item.
    let mut nesting = 0_usize;
    let mut attribute = String::new();
    let mut in_attribute = 0_usize;
    let mut words = String::new();

    for line in &mut lines {
        let mut under = whole_file;
        for region in &regions {
            under = under.union(region.under);
        }
        let code = line.code.clone();
        let mut chars = code.chars().peekable();
        while let Some(c) = chars.next() {
            if in_attribute > 0 {
                match c {
                    '[' => in_attribute += 1,
                    ']' => in_attribute -= 1,
                    _ => {}
                }
                attribute.push(c);
                if in_attribute == 0 {
                    let condition = condition_of(&attribute);
                    if attribute.starts_with("#!") {
                        whole_file = whole_file.union(condition);
                        under = under.union(condition);
                    } else if condition != Under::default() {
                        regions.push(Region { under: condition, depth, opened: false });
                        under = under.union(condition);
                    }
                    attribute.clear();
                }
                continue;
            }
            match c {
                '#' if matches!(chars.peek(), Some('[' | '!')) => {
                    let inner = chars.peek() == Some(&'!');
                    if inner {
                        chars.next();
                    }
                    if chars.peek() == Some(&'[') {
                        chars.next();
                        in_attribute = 1;
                        attribute = if inner { "#![".to_owned() } else { "#[".to_owned() };
                    }
                }
                '{' => {
                    for region in regions.iter_mut().filter(|r| r.depth == depth) {
                        region.opened = true;
                    }
                    depth += 1;
                    words.clear();
                }
                '}' => {
                    depth = depth.saturating_sub(1);
                    // An item that its parent's brace cut off (a last field or arm) ends there too.
                    regions.retain(|r| r.depth < depth || (r.depth == depth && !r.opened));
                    words.clear();
                }
                '(' | '[' => {
                    nesting += 1;
                    words.push(' ');
                }
                ')' | ']' => {
                    nesting = nesting.saturating_sub(1);
                    words.push(' ');
                }
                ';' if nesting == 0 => {
                    if let Some(name) = module_name(&words) {
                        modules.push((name, under));
                    }
                    regions.retain(|r| r.depth < depth || r.opened);
                    words.clear();
                }
                ',' if nesting == 0 => regions.retain(|r| r.depth < depth || r.opened || is_item(&words)),
                other => words.push(other),
            }
        }
        words.push(' ');
        line.under = under;
    }
    (lines, modules)
}

/// Whether the words so far begin an item that a comma cannot end (as it ends a field, a variant or an arm).
fn is_item(words: &str) -> bool {
    words
        .split_whitespace()
        .any(|word| matches!(word, "fn" | "impl" | "struct" | "enum" | "trait" | "use" | "type" | "mod" | "where"))
}

fn module_name(words: &str) -> Option<String> {
    let mut words = words.split_whitespace().skip_while(|word| *word == "pub" || *word == "crate");
    (words.next() == Some("mod")).then(|| words.next().map(str::to_owned)).flatten()
}

/// What an attribute's text says about when its item is compiled.
fn condition_of(attribute: &str) -> Under {
    let compact: String = attribute.chars().filter(|c| !c.is_whitespace()).collect();
    let body = compact.trim_start_matches("#![").trim_start_matches("#[").trim_end_matches(']');
    if body == "test" {
        return Under { test: true, ..Under::default() };
    }
    let Some(predicate) = body.strip_prefix("cfg(").and_then(|rest| rest.strip_suffix(')')) else {
        return Under::default();
    };
    Under {
        test: implies(predicate, &|atom| atom == "test"),
        feature: implies(predicate, &|atom| atom == "test" || atom.starts_with("feature=")),
        loom: implies(predicate, &|atom| atom == "loom"),
    }
}

/// Whether `predicate` can only hold when an atom that `wanted` accepts holds.
fn implies(predicate: &str, wanted: &dyn Fn(&str) -> bool) -> bool {
    if let Some(inner) = predicate.strip_prefix("all(").and_then(|rest| rest.strip_suffix(')')) {
        arguments(inner).any(|part| implies(part, wanted))
    } else if let Some(inner) = predicate.strip_prefix("any(").and_then(|rest| rest.strip_suffix(')')) {
        arguments(inner).all(|part| implies(part, wanted))
    } else {
        wanted(predicate)
    }
}

fn arguments(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    list.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .filter(|part| !part.is_empty())
}

/// Where the splitter stands between two characters.
enum State {
    Code,
    LineComment,
    BlockComment { depth: usize },
    Str { raw_hashes: Option<usize> },
}

/// Separates code from comments and blanks literals.
fn split(text: &str) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut state = State::Code;
    let mut fence = Fence::default();
    let mut i = 0;
    while i < chars.len() {
        let c = at(i);
        if c == '\n' {
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            finish(&mut lines, &mut fence);
            lines.push(Line::default());
            i += 1;
            continue;
        }
        let last = lines.len() - 1;
        let line = &mut lines[last];
        match state {
            State::LineComment => line.comment.push(c),
            State::BlockComment { ref mut depth } => {
                if c == '*' && at(i + 1) == '/' {
                    *depth -= 1;
                    i += 1;
                    if *depth == 0 {
                        state = State::Code;
                    }
                } else if c == '/' && at(i + 1) == '*' {
                    *depth += 1;
                    i += 1;
                } else {
                    line.comment.push(c);
                }
            }
            State::Str { raw_hashes: None } => match c {
                '\\' if at(i + 1) != '\n' => i += 1,
                '"' => {
                    line.code.push('"');
                    state = State::Code;
                }
                _ => {}
            },
            State::Str { raw_hashes: Some(hashes) } => {
                if c == '"' && (1..=hashes).all(|n| at(i + n) == '#') {
                    line.code.push('"');
                    i += hashes;
                    state = State::Code;
                }
            }
            State::Code => {
                if c == '/' && at(i + 1) == '/' {
                    if matches!(at(i + 2), '/' | '!') && at(i + 3) != '/' {
                        line.kind = Comment::Doc;
                        i += 1;
                    }
                    i += 1;
                    state = State::LineComment;
                } else if c == '/' && at(i + 1) == '*' {
                    i += 1;
                    state = State::BlockComment { depth: 1 };
                } else if let Some(hashes) = raw_string(&chars, i) {
                    line.code.push('"');
                    // The literal's prefix: r, br or cr, the hashes and the quote.
                    while at(i) != '"' {
                        i += 1;
                    }
                    state = State::Str { raw_hashes: Some(hashes) };
                } else if c == '"' {
                    line.code.push('"');
                    state = State::Str { raw_hashes: None };
                } else if c == '\'' && at(i + 1) == '\\' {
                    line.code.push_str("' '");
                    i += 3;
                    while i < chars.len() && at(i) != '\'' {
                        i += 1;
                    }
                } else if c == '\'' && at(i + 2) == '\'' {
                    line.code.push_str("' '");
                    i += 2;
                } else {
                    line.code.push(c);
                }
            }
        }
        i += 1;
    }
    finish(&mut lines, &mut fence);
    lines
}

/// The number of hashes if a raw string literal begins at `i`.
fn raw_string(chars: &[char], i: usize) -> Option<usize> {
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    if i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_') {
        return None;
    }
    let mut j = i;
    if matches!(at(j), 'b' | 'c') {
        j += 1;
    }
    if at(j) != 'r' {
        return None;
    }
    j += 1;
    let mut hashes = 0;
    while at(j) == '#' {
        hashes += 1;
        j += 1;
    }
    (at(j) == '"').then_some(hashes)
}

/// Marks doc lines inside a fence, once the line is complete.
fn finish(lines: &mut [Line], fence: &mut Fence) {
    if let Some(line) = lines.last_mut() {
        if line.kind == Comment::Doc {
            if fence.feed(&line.comment) {
                line.kind = Comment::Example;
            }
        } else {
            *fence = Fence::default();
        }
    }
}

/// Follows Markdown code fences and tells the lines that are compiled as a test.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    inside: Option<bool>,
}

impl Fence {
    /// Takes the next line; true if it stands in a fence that rustdoc compiles.
    pub(crate) fn feed(&mut self, line: &str) -> bool {
        let trimmed = line.trim();
        if let Some(info) = trimmed.strip_prefix("```") {
            self.inside = match self.inside {
                Some(_) => None,
                None => Some(compiles(info)),
            };
            return false;
        }
        self.inside == Some(true)
    }
}

/// Whether rustdoc compiles a fence with this info string.
fn compiles(info: &str) -> bool {
    info.split(',').map(str::trim).all(|word| {
        matches!(word, "" | "rust" | "should_panic" | "no_run" | "compile_fail" | "standalone_crate")
            || word.starts_with("edition")
    })
}

#[cfg(test)]
mod tests {
    use super::{Comment, Source, Under, scan, scan_all};
    use std::path::PathBuf;

    fn under_test(text: &str) -> Vec<bool> {
        scan(text, Under::default()).0.iter().map(|line| line.under.test).collect()
    }

    #[test]
    fn strings_and_comments_are_no_code() {
        let text = "let a = \"x.unwrap() // no\"; // SL-01\nlet b = r#\"panic!(\"\"#; /* a /* b */ c */ let c = '\"'; let d: &'a str;\n";
        let (lines, _) = scan(text, Under::default());
        assert_eq!(lines[0].code.trim_end(), "let a = \"\";");
        assert_eq!(lines[0].comment, " SL-01");
        assert!(!lines[1].code.contains("panic"));
        assert!(lines[1].code.contains("let d: &'a str;"));
        assert!(lines[1].comment.contains('c'));
    }

    #[test]
    fn a_test_module_ends_at_its_brace() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { c() }\n}\nfn d() {}\n";
        assert_eq!(under_test(text)[..6], [false, true, true, true, true, false]);
    }

    #[test]
    fn a_conditional_statement_or_field_ends_where_it_ends() {
        let text =
            "struct S {\n    #[cfg(test)]\n    a: [u8; 4],\n    b: u8,\n}\n#[cfg(test)]\nuse x::{a, b};\nfn d() {}\n";
        assert_eq!(under_test(text)[..8], [false, true, true, false, false, true, true, false]);
    }

    #[test]
    fn not_test_is_not_a_test_and_any_needs_all_its_arms() {
        assert!(!under_test("#[cfg(not(test))]\nfn a() {}")[1]);
        assert!(!under_test("#[cfg(any(test, loom))]\nfn a() {}")[1]);
        assert!(under_test("#[cfg(all(loom, test))]\nfn a() {}")[1]);
        let (lines, _) = scan("#[cfg(any(test, feature = \"std\"))]\nextern crate std;", Under::default());
        assert!(lines[1].under.feature && !lines[1].under.test);
    }

    #[test]
    fn models_are_the_tests_under_loom() {
        let text = "#[cfg(all(test, loom))]\nmod loom {\n    #[test]\n    #[ignore]\n    fn a_model() {}\n    fn helper() {}\n}\n#[test]\nfn unit() {}\n";
        let source = Source { path: PathBuf::new(), text: text.to_owned(), lines: scan(text, Under::default()).0 };
        assert_eq!(source.models(), [(5, "a_model")]);
    }

    #[test]
    fn examples_are_tests_and_drawings_are_not() {
        let text = "/// Words\n/// ```\n/// f(); // SL-01\n/// ```\n/// ```text\n/// SL-02\n/// ```\nfn f() {}\n";
        let (lines, _) = scan(text, Under::default());
        assert_eq!(lines[2].kind, Comment::Example);
        assert_eq!(lines[5].kind, Comment::Doc);
    }

    #[test]
    fn a_module_in_its_own_file_inherits_the_condition() {
        let folder = std::env::temp_dir().join(format!("xtask-source-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("src/deep")).expect("a temporary folder");
        for (path, text) in [
            ("src/lib.rs", "#[cfg(test)]\npub(crate) mod deep;\nmod plain;\n"),
            ("src/deep/mod.rs", "mod leaf;\n"),
            ("src/deep/leaf.rs", "fn leaf() {}\n"),
            ("src/plain.rs", "fn plain() {}\n"),
        ] {
            std::fs::write(folder.join(path), text).expect("a file");
        }
        let paths: Vec<PathBuf> =
            ["src/lib.rs", "src/deep/mod.rs", "src/deep/leaf.rs", "src/plain.rs"].iter().map(PathBuf::from).collect();
        let sources = scan_all(&folder, &paths).expect("scans");
        std::fs::remove_dir_all(&folder).expect("removed");
        let is_test = |path: &str| sources.iter().find(|s| s.path.ends_with(path)).map(|s| s.lines[0].under.test);
        assert_eq!(is_test("src/deep/leaf.rs"), Some(true));
        assert_eq!(is_test("src/plain.rs"), Some(false));
    }
}
