from __future__ import annotations

import torch

from miles_core.accelerator.parking import Parking


def test_tensors_and_views_come_back_in_place():
    whole = torch.arange(10.0)
    view, empty = whole[2:5], torch.empty(0)
    parking = Parking()
    assert parking.out([whole, view, empty]) == 40
    assert whole.untyped_storage().nbytes() == 0
    parking.back()
    assert view.tolist() == [2.0, 3.0, 4.0]
    whole += 1
    assert view.tolist() == [3.0, 4.0, 5.0]


def test_changes_are_carried_along_unless_there_are_none():
    tensor = torch.zeros(3)
    parking = Parking()
    parking.out([tensor])
    parking.back()
    tensor += 1
    parking.out([tensor])
    parking.back()
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    tensor += 1
    parking.out([tensor], unchanged=True)
    parking.back()
    assert tensor.tolist() == [1.0, 1.0, 1.0]


def test_nothing_parked_comes_back_as_nothing():
    Parking().back()
