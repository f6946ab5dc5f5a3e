"""The reward ``math``: is the boxed answer of a response equal to the label?"""
