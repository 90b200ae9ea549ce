//! Size classes.

use crate::geometry::{Geometry, MAX_SLOTS, Shape};
use crate::{Config, Handle};

#[test]
fn shapes_waste_least_and_slots_span_two_frames_at_most() {
    for chain in Config::MIN_CHAIN..=Config::MAX_CHAIN {
        for size in (32..=4096).step_by(16) {
            let shape = Shape::best(size, chain);
            let waste = |frames: usize, slots: usize| 1.0 - (slots * size) as f64 / (frames * 4096) as f64;
            assert!(shape.slots() * size <= shape.frames() * 4096 && shape.frames() <= usize::from(chain));
            for frames in 1..=usize::from(chain) {
                let slots = frames * 4096 / size;
                if slots <= MAX_SLOTS {
                    let mine = waste(shape.frames(), shape.slots());
                    // ZS-02: the smallest number of frames on ties, so powers of two have one frame.
                    assert!(mine < waste(frames, slots) + 1e-12);
                    assert!(shape.frames() <= frames || mine < waste(frames, slots) - 1e-12);
                }
            }
            for slot in 0..shape.slots() {
                // ZS-14
                let (first, last) = shape.frames_of(slot);
                assert!(last - first <= 1 && last < shape.frames());
                for frame in 0..shape.frames() {
                    let (start, end) = shape.slots_of(frame);
                    assert_eq!(
                        (start..end).contains(&slot),
                        frame == first || frame == last,
                        "{shape:?} {slot} {frame}"
                    );
                }
            }
        }
    }
}

#[test]
fn shapes_of_chain_8() {
    let geometry = Geometry::new(8, 16);
    let shape = |len: usize| {
        let shape = geometry.shape(geometry.class_of(len).into()).unwrap();
        (shape.size(), shape.frames(), shape.slots())
    };
    // ZS-06, for requests 8 bytes longer, since no handle is kept beside the object.
    assert_eq!(shape(32), (32, 1, 128));
    assert_eq!(shape(112), (112, 2, 73));
    assert_eq!(shape(1024), (1024, 1, 4));
    assert_eq!(shape(2048), (2048, 1, 2));
    assert_eq!(shape(2049), (2176, 8, 15));
    assert_eq!(shape(3008), (3072, 3, 4));
    assert_eq!(shape(3632), (3632, 8, 9));
    assert_eq!(shape(3633), (4096, 1, 1));
    // ZS-04, ZS-05: the same bound, but nothing is taken off it for a handle.
    assert_eq!(geometry.huge_class_size(), 3633);
    assert_eq!(Geometry::new(4, 16).huge_class_size(), 3265);
    assert_eq!(Geometry::new(16, 16).huge_class_size(), 3841);
}

#[test]
fn classes_grow_and_merge() {
    // ZS-03: sizes with equal frames and slots share the largest.
    for chain in Config::MIN_CHAIN..=Config::MAX_CHAIN {
        let geometry = Geometry::new(chain, 16);
        let shapes: std::vec::Vec<_> = (0..geometry.nr_classes()).map(|class| geometry.shape(class).unwrap()).collect();
        assert!(shapes.windows(2).all(|pair| pair[0].size() < pair[1].size()));
        assert!(
            shapes.windows(2).all(|pair| (pair[0].frames(), pair[0].slots()) != (pair[1].frames(), pair[1].slots()))
        );
        for len in 1..=4096 {
            let shape = shapes[usize::from(geometry.class_of(len))];
            assert!(shape.size() >= len);
        }
        assert!(geometry.shape(geometry.nr_classes()).is_none());
    }
}

#[test]
fn groups_are_tenths() {
    for size in [32, 48, 64, 512, 1040, 3072, 4096] {
        let shape = Shape::best(size, 12);
        for inuse in 0..=shape.slots() {
            // ZS-18: exactly 10% is group 2, one object is never in group 0, full is 11.
            let expected = match inuse {
                0 => 0,
                full if full == shape.slots() => 11,
                inuse => 100 * inuse / shape.slots() / 10 + 1,
            };
            assert_eq!(shape.group(inuse), expected);
        }
    }
}

#[test]
fn fewest_frames() {
    let shape = Shape::best(3072, 8);
    assert_eq!((shape.frames(), shape.slots()), (3, 4));
    let frames: std::vec::Vec<_> = (0..=9).map(|objects| shape.frames_for(objects)).collect();
    assert_eq!(frames, [0, 1, 2, 3, 3, 4, 5, 6, 6, 7]);
}

#[test]
fn handles_are_numbers_of_eight_bytes() {
    assert_eq!(size_of::<Handle>(), 8);
    assert_eq!(size_of::<Option<Handle>>(), 8);
}
