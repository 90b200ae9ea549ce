//! Every migration fails once.

use kmem_gfp::Pfn;

use super::declare::declare;
use super::toy::{Frame, Toy};
use crate::{AreaSpec, Cma, CmaError, Place};

#[test]
fn whichever_move_fails_nothing_is_lost_and_another_place_is_found() {
    // M-14, M-15
    for fail_at in 1..=600 {
        let toy = Toy::new(6);
        let cma = Cma::new(&toy);
        let area = declare(&cma, &AreaSpec::new("a", 1024).place(Place::Fixed(Pfn(1024)))).unwrap();
        assert!(area.activate());
        for name in 0..1024 {
            toy.alloc(Some(name), 1024 + name).unwrap();
        }
        toy.state.lock().unwrap().fail_at = fail_at;
        let pages = area.alloc(512, 0).unwrap();
        let expected = if fail_at <= 512 { 1024 + fail_at } else { 1024 };
        assert_eq!(pages.range().start, Pfn(expected), "behind the frame that stayed");
        assert_eq!(toy.tenants().len(), 1024);
        assert_eq!(toy.count(|frame| frame == Frame::Taken), 512);
        assert_eq!((area.stats().used_pages, area.stats().available_pages), (512, 512));
        drop(pages);
        assert_eq!(area.stats().available_pages, 1024);
        assert_eq!(toy.count(|frame| frame == Frame::Taken), 0);
    }
}

#[test]
fn with_no_other_place_a_failed_move_fails_the_request_and_all_is_as_before() {
    for fail_at in 1..=512 {
        let toy = Toy::new(4);
        let cma = Cma::new(&toy);
        let area = declare(&cma, &AreaSpec::new("a", 512).place(Place::Fixed(Pfn(1024)))).unwrap();
        assert!(area.activate());
        (0..512).for_each(|name| assert!(toy.alloc(Some(name), 1024 + name).is_some()));
        toy.state.lock().unwrap().fail_at = fail_at;
        let busy = Some(Pfn(1024 + fail_at - 1));
        assert_eq!(area.try_alloc(512, 0).unwrap_err(), CmaError::NoRoom { nr_pages: 512, busy });
        assert_eq!((toy.tenants().len(), toy.count(|frame| frame == Frame::Taken)), (512, 0));
        assert_eq!(
            (area.stats().used_pages, area.stats().available_pages, area.stats().max_chunk_pages),
            (0, 512, 512)
        );
        assert!(area.try_alloc(512, 0).is_ok(), "the next time it works");
    }
}
