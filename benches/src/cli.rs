//! The command line, parsed by hand: a dozen words need no library.

/// What `--help` and a wrong argument print.
pub(crate) const USAGE: &str = "\
usage: bench [pages] [objects] [caches] [zsmalloc] [vmalloc] [instructions] [options]
  --quick            few, short runs
  --filter TEXT      only rows whose suite/name contains TEXT
  --subject TEXT     only kmem and the subjects whose name contains TEXT
  --rounds N         runs of each subject per row (default 25, with --quick 5)
  --seed N           seed of the random sequences
  --json FILE        write all figures as JSON, `-` for standard output
  --list             name the rows and stop

KMEM_LLFREE=FILE     a shared library with LLFree behind the calls of benches/README.md
";

/// A group of rows that share their subjects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Suite {
    /// Page frames.
    Pages,
    /// Objects of any size, through `GlobalAlloc`.
    Objects,
    /// Objects of one type.
    Caches,
    /// Compressed objects: density and speed.
    Zsmalloc,
    /// Ranges of addresses.
    Vmalloc,
    /// Instructions per operation under callgrind.
    Instructions,
}

impl Suite {
    const ALL: [Self; 6] =
        [Self::Pages, Self::Objects, Self::Caches, Self::Zsmalloc, Self::Vmalloc, Self::Instructions];

    /// The word that selects the suite.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Objects => "objects",
            Self::Caches => "caches",
            Self::Zsmalloc => "zsmalloc",
            Self::Vmalloc => "vmalloc",
            Self::Instructions => "instructions",
        }
    }
}

/// Everything a run can be told.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) suites: Vec<Suite>,
    pub(crate) quick: bool,
    pub(crate) filter: Option<String>,
    pub(crate) subject: Option<String>,
    pub(crate) rounds: u32,
    pub(crate) seed: u64,
    pub(crate) json: Option<String>,
    pub(crate) list: bool,
}

impl Options {
    /// Whether the row `suite/name` is asked for.
    pub(crate) fn wants_row(&self, suite: &str, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|text| format!("{suite}/{name}").contains(text.as_str()))
    }

    /// Whether the subject `name` is asked for; kmem always is.
    pub(crate) fn wants_subject(&self, name: &str) -> bool {
        self.subject.as_ref().is_none_or(|text| name.contains(text.as_str()) || name.starts_with("kmem"))
    }
}

/// Reads the arguments; `Ok(None)` asks for the usage text.
pub(crate) fn parse(arguments: &[String]) -> Result<Option<Options>, String> {
    let mut options = Options {
        suites: Vec::new(),
        quick: false,
        filter: None,
        subject: None,
        rounds: 0,
        seed: 0x5eed,
        json: None,
        list: false,
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = |what: &str| words.next().cloned().ok_or_else(|| format!("{word} needs {what}"));
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--quick" => options.quick = true,
            "--list" => options.list = true,
            "--filter" => options.filter = Some(value("a text")?),
            "--subject" => options.subject = Some(value("a text")?),
            "--json" => options.json = Some(value("a file name or -")?),
            "--rounds" => options.rounds = number(word, &value("a number")?)?,
            "--seed" => options.seed = number(word, &value("a number")?)?,
            name => match Suite::ALL.iter().find(|suite| suite.name() == name) {
                Some(suite) => options.suites.push(*suite),
                None => return Err(format!("unknown argument `{name}`")),
            },
        }
    }
    if options.suites.is_empty() {
        options.suites = Suite::ALL.to_vec();
    }
    if options.rounds == 0 {
        options.rounds = if options.quick { 5 } else { 25 };
    }
    Ok(Some(options))
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{option} needs a number, not `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::{Suite, parse};

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn no_suite_means_all_of_them() {
        let options = parse(&words("--quick --seed 7")).unwrap().unwrap();
        assert_eq!(options.suites, Suite::ALL);
        assert_eq!((options.rounds, options.seed), (5, 7));
    }

    #[test]
    fn an_unknown_word_is_named() {
        assert!(parse(&words("pagse")).unwrap_err().contains("pagse"));
        assert!(parse(&words("--rounds many")).unwrap_err().contains("many"));
        assert!(parse(&words("--json")).unwrap_err().contains("file name"));
    }

    #[test]
    fn kmem_survives_every_subject_filter() {
        let options = parse(&words("--subject talc")).unwrap().unwrap();
        assert!(options.wants_subject("talc") && options.wants_subject("kmem"));
        assert!(!options.wants_subject("mimalloc"));
    }
}
