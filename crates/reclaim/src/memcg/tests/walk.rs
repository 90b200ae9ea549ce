//! The walk over the tree while groups come and go.

use std::vec::Vec;

use super::rig::table;
use crate::{GroupId, Groups};

const ROOT: GroupId = GroupId::ROOT;

#[test]
fn a_walk_goes_through_the_subtree_children_first() {
    let memcg = table(1, 16);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(ROOT).unwrap();
    let a1 = memcg.create(a).unwrap();
    let a2 = memcg.create(a).unwrap();
    let a1x = memcg.create(a1).unwrap();
    assert_eq!(memcg.subtree(ROOT).collect::<Vec<_>>(), [ROOT, a, a1, a1x, a2, b]);
    assert_eq!(memcg.subtree(a).collect::<Vec<_>>(), [a, a1, a1x, a2]);
    assert_eq!(memcg.subtree(a2).collect::<Vec<_>>(), [a2]);
    assert!(memcg.is_within(a1x, a) && !memcg.is_within(b, a));
}

#[test]
fn a_walk_goes_on_where_a_gone_group_was() {
    let memcg = table(1, 16);
    let a = memcg.create(ROOT).unwrap();
    let [x, y, z] = [0; 3].map(|_| memcg.create(a).unwrap());
    let b = memcg.create(ROOT).unwrap();
    memcg.remove(y).unwrap();
    assert_eq!(memcg.next_in_subtree(ROOT, Some(y)), Some(z));
    memcg.remove(z).unwrap();
    assert_eq!(memcg.next_in_subtree(ROOT, Some(z)), Some(b), "the last child: on to its parent's sibling");
    assert_eq!(memcg.next_in_subtree(a, Some(z)), None, "or the end");
    assert_eq!(memcg.next_in_subtree(ROOT, Some(x)), Some(b));
    memcg.remove(x).unwrap();
    memcg.remove(a).unwrap();
    assert_eq!(memcg.next_in_subtree(ROOT, Some(x)), Some(b), "its parent has gone, too");
    assert_eq!(memcg.next_in_subtree(a, None), None, "no walk below a group that has gone");
    assert!(!memcg.is_online(a) && memcg.is_online(b));
}

#[test]
fn swappiness_is_the_groups_own_or_the_machines() {
    let memcg = table(1, 4);
    let a = memcg.create(ROOT).unwrap();
    assert_eq!(memcg.swappiness(a), None);
    memcg.set_swappiness(a, Some(200)).unwrap();
    assert_eq!(memcg.swappiness(a), Some(200));
    memcg.set_swappiness(a, Some(201)).unwrap_err();
    memcg.set_swappiness(a, None).unwrap();
    assert_eq!(memcg.swappiness(a), None);
}
