//! Pages that repeat one word: the word says all.

use super::PageBytes;

const WORD: usize = size_of::<u64>();

fn words(page: &PageBytes) -> impl Iterator<Item = u64> {
    page.as_chunks::<WORD>().0.iter().map(|word| u64::from_ne_bytes(*word))
}

/// The word that fills the page, if one does.
#[inline]
pub(crate) fn same_filled(page: &PageBytes) -> Option<u64> {
    let chunks = page.as_chunks::<WORD>().0;
    let first = u64::from_ne_bytes(*chunks.first()?);
    // Many pages that are not alike all over differ at their end.
    if u64::from_ne_bytes(*chunks.last()?) != first {
        return None;
    }
    words(page).all(|word| word == first).then_some(first)
}

/// Fills a page with a word.
#[inline]
pub(crate) fn fill(page: &mut PageBytes, word: u64) {
    for chunk in page.as_chunks_mut::<WORD>().0 {
        *chunk = word.to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_fills_a_page_or_does_not() {
        let mut page = [0; 4096];
        assert_eq!(same_filled(&page), Some(0));
        fill(&mut page, 0x0123_4567_89ab_cdef);
        assert_eq!(same_filled(&page), Some(0x0123_4567_89ab_cdef));
        for at in [0, 7, 8, 2048, 4088, 4095] {
            let mut other = page;
            other[at] ^= 1;
            assert_eq!(same_filled(&other), None, "byte {at}");
        }
    }
}
