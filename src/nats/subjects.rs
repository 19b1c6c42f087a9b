//! Subjects and their wildcards.

/// The fewest of `subjects` that still match all that they match: one that
/// another covers is left out. JetStream refuses overlaps within one stream.
pub fn covering_set<'a>(subjects: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut subjects: Vec<&str> = subjects.into_iter().collect();
    subjects.sort_unstable();
    subjects.dedup();
    subjects
        .iter()
        .filter(|subject| {
            !subjects
                .iter()
                .any(|other| other != *subject && covers(other, subject))
        })
        .map(|subject| (*subject).to_owned())
        .collect()
}

/// Whether everything that `subject` matches is matched by `pattern`.
pub fn covers(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    let mut pattern = pattern.split('.');
    loop {
        match (pattern.next(), subject.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_subjects_become_the_smallest_covering_set() {
        let all = ["a.b.>", "a.>", "a.b.c", "d.*", "d.e", "d.e.f", "a.>"];
        assert_eq!(covering_set(all), ["a.>", "d.*", "d.e.f"]);
        assert_eq!(covering_set([]), Vec::<String>::new());
    }

    #[test]
    fn wildcards_cover_what_they_match_and_no_more() {
        for (pattern, subject) in [
            (">", "a"),
            ("a.>", "a.b.>"),
            ("a.*", "a.b"),
            ("*.b", "*.b"),
            ("a.>", "a.*"),
        ] {
            assert!(covers(pattern, subject), "{pattern} {subject}");
        }
        for (pattern, subject) in [
            ("a.>", "a"),
            ("a.*", "a.>"),
            ("a.*", "a.b.c"),
            ("a.b", "a.*"),
            ("*", ">"),
        ] {
            assert!(!covers(pattern, subject), "{pattern} {subject}");
        }
    }
}
